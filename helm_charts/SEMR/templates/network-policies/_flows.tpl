{{/*
Who talks to whom: one line a flow, "from to port,port". An asterisk is every port. Tasks talk to each other, and KubeRay's operator
to them, where they are those of Flyte's Ray plug-in: heads and workers of a cluster that lives as long as its task. Policies for both ends are made of these.
Names are those of "semr.network.peers". A flow whose end is not installed is left out.
*/}}
{{- define "semr.network.flows" -}}
postgresql-setup postgresql 5432
mlflow postgresql 5432
flyte postgresql 5432
minio-setup minio 9000
mlflow minio 9000
flyte minio 9000
ray-jobs minio 9000
ray-serving minio 9000
evolution minio 9000
tasks minio 9000
ray-jobs mlflow 5000
ray-serving mlflow 5000
evolution mlflow 5000
tasks mlflow 5000
inference mlflow 5000
inference minio 9000
tasks inference 8080
ray-jobs ray-jobs *
ray-serving ray-serving *
evolution ray-jobs 8265,8000
evolution ray-serving 8265,8000
tasks ray-jobs 8265,8000
tasks tasks *
tasks ray-serving 8265,8000
ray-jobs ray-serving 8265,8000
ray-operator ray-jobs 8265,52365,8000
ray-operator ray-serving 8265,52365,8000
ray-jobs redis 6379
ray-serving redis 6379
ray-operator redis 6379
ray-operator tasks 8265,52365
tasks evolution 8500
alertmanager evolution 8500
tasks flyte 8089
prometheus flyte 10254
evolution flyte 8089
evolution prometheus 9090
tasks prometheus 9090
ray-jobs prometheus 9090
ray-serving prometheus 9090
prometheus mlflow 5000
prometheus minio 9000
prometheus evolution 8500
prometheus ray-jobs 8080,44217,44227
prometheus ray-serving 8080,44217,44227
test postgresql 5432
test minio 9000
test mlflow 5000
test evolution 8500
test ray-jobs 8265
test ray-serving 8000
test flyte 8088
test prometheus 9090
test alertmanager 9093
test grafana 3000
{{- end -}}

{{/* Labels of the pods of each peer, as YAML. A policy is made for those of "own", of which Flyte is one: it asks nobody who he is. */}}
{{- define "semr.network.peers" -}}
{{- $release := .Release.Name -}}
own:
  {{- if .Values.postgresql.enabled }}
  postgresql: {{ include "semr.selectorLabels" (list . "postgresql") | fromYaml | toJson }}
  postgresql-setup: {{ include "semr.selectorLabels" (list . "postgresql-setup") | fromYaml | toJson }}
  {{- end }}
  {{- if .Values.minio.enabled }}
  minio: {{ include "semr.selectorLabels" (list . "minio") | fromYaml | toJson }}
  minio-setup: {{ include "semr.selectorLabels" (list . "minio-setup") | fromYaml | toJson }}
  {{- end }}
  {{- if .Values.mlflow.enabled }}
  mlflow: {{ include "semr.selectorLabels" (list . "mlflow") | fromYaml | toJson }}
  {{- end }}
  {{- /* The operator may set app.kubernetes.io/name of Ray's pods. */}}
  {{- if .Values.ray.jobs.enabled }}
  ray-jobs: {app.kubernetes.io/instance: {{ $release }}, app.kubernetes.io/component: ray-jobs}
  {{- end }}
  {{- if .Values.ray.serving.enabled }}
  ray-serving: {app.kubernetes.io/instance: {{ $release }}, app.kubernetes.io/component: ray-serving}
  serving-setup: {{ include "semr.selectorLabels" (list . "serving-setup") | fromYaml | toJson }}
  {{- end }}
  {{- if and (include "semr.redis.needed" .) (not .Values.ray.gcsFaultTolerance.externalRedis) }}
  redis: {{ include "semr.selectorLabels" (list . "redis") | fromYaml | toJson }}
  {{- end }}
  {{- if .Values.evolution.enabled }}
  evolution: {{ include "semr.selectorLabels" (list . "evolution") | fromYaml | toJson }}
  {{- end }}
  {{- if .Values.flyte.taskPodTemplate.enabled }}
  tasks: {app.kubernetes.io/instance: {{ $release }}, app.kubernetes.io/component: tasks}
  {{- end }}
  {{- if index .Values "flyte-binary" "enabled" }}
  flyte: {app.kubernetes.io/instance: {{ $release }}, app.kubernetes.io/component: flyte-binary}
  {{- end }}
  {{- if .Values.tests.enabled }}
  test: {{ include "semr.selectorLabels" (list . "test") | fromYaml | toJson }}
  {{- end }}
other:
  ray-operator: {app.kubernetes.io/component: kuberay-operator}
  inference: {app.kubernetes.io/name: semr-inference}
  prometheus: {app.kubernetes.io/name: prometheus}
  alertmanager: {app.kubernetes.io/name: alertmanager}
  grafana: {app.kubernetes.io/instance: {{ $release }}, app.kubernetes.io/name: grafana}
{{- end -}}

{{/* Ports of existing services outside, which policies can only open by port: a list, as JSON. */}}
{{- define "semr.network.externalPorts" -}}
{{- $ports := list -}}
{{- if and (not .Values.postgresql.enabled) .Values.postgresql.external.host -}}
{{- $ports = append $ports (.Values.postgresql.external.port | int) -}}
{{- end -}}
{{- $urls := list (.Values.minio.enabled | ternary "" .Values.minio.external.endpoint) (.Values.mlflow.enabled | ternary "" .Values.mlflow.external.url) .Values.ray.external.dashboardUrl .Values.ray.external.serveUrl .Values.ray.external.serveApiUrl .Values.monitoring.external.prometheusUrl .Values.monitoring.external.alertmanagerUrl .Values.evolution.external.url -}}
{{- with .Values.flyte.external.endpoint -}}
{{- $urls = append $urls (contains "://" . | ternary . (printf "http://%s" .)) -}}
{{- end -}}
{{- with .Values.ray.gcsFaultTolerance.externalRedis -}}
{{- $urls = append $urls (printf "http://%s" .) -}}
{{- end -}}
{{- range $urls -}}
{{- if . -}}
{{- $ports = append $ports (include "semr.urlPort" . | int) -}}
{{- end -}}
{{- end -}}
{{- $ports | uniq | toJson -}}
{{- end -}}
