{{/*
What can be opened, as YAML: for each name the Service (for ingress and httpRoute), its port, the labels of the pods behind it
and their port (for nodePort). Only what is installed.
*/}}
{{- define "semr.gateway.targets" -}}
{{- $release := .Release.Name -}}
{{- if .Values.ray.jobs.enabled }}
ray:
  service: {{ include "semr.rayJobs.fullname" . }}-head-svc
  port: 8265
  targetPort: dashboard
  pods: {app.kubernetes.io/instance: {{ $release }}, app.kubernetes.io/component: ray-jobs, semr.io/ray-role: head}
{{- end }}
{{- if .Values.ray.serving.enabled }}
ray-serving:
  service: {{ include "semr.rayServing.fullname" . }}-head-svc
  port: 8265
  targetPort: dashboard
  pods: {app.kubernetes.io/instance: {{ $release }}, app.kubernetes.io/component: ray-serving, semr.io/ray-role: head}
serve:
  service: {{ include "semr.rayServing.fullname" . }}-serve-svc
  port: 8000
  targetPort: serve
  # The operator marks the pods whose proxy answers.
  pods: {app.kubernetes.io/instance: {{ $release }}, app.kubernetes.io/component: ray-serving, ray.io/serve: "true"}
{{- else if .Values.ray.jobs.enabled }}
serve:
  service: {{ include "semr.rayJobs.fullname" . }}-head-svc
  port: 8000
  targetPort: serve
  pods: {app.kubernetes.io/instance: {{ $release }}, app.kubernetes.io/component: ray-jobs, semr.io/ray-role: head}
{{- end }}
{{- if index .Values "flyte-binary" "enabled" }}
{{- $name := index .Values "flyte-binary" "nameOverride" | default "flyte-binary" }}
flyte:
  service: {{ include "semr.flyte.fullname" . }}-http
  port: 8088
  targetPort: http
  pods: {app.kubernetes.io/instance: {{ $release }}, app.kubernetes.io/name: {{ $name }}, app.kubernetes.io/component: flyte-binary}
  path: /console
flyte-grpc:
  service: {{ include "semr.flyte.fullname" . }}-grpc
  port: 8089
  targetPort: grpc
  pods: {app.kubernetes.io/instance: {{ $release }}, app.kubernetes.io/name: {{ $name }}, app.kubernetes.io/component: flyte-binary}
{{- end }}
{{- if .Values.minio.enabled }}
minio:
  service: {{ include "semr.minio.fullname" . }}
  port: 9001
  targetPort: console
  pods: {{ include "semr.selectorLabels" (list . "minio") | fromYaml | toJson }}
s3:
  service: {{ include "semr.minio.fullname" . }}
  port: 9000
  targetPort: s3
  pods: {{ include "semr.selectorLabels" (list . "minio") | fromYaml | toJson }}
{{- end }}
{{- if include "semr.prometheusStack.has" (list . "grafana") }}
grafana:
  service: {{ include "semr.grafana.fullname" . }}
  port: 80
  targetPort: 3000
  pods: {app.kubernetes.io/instance: {{ $release }}, app.kubernetes.io/name: grafana}
{{- end }}
{{- if .Values.mlflow.enabled }}
mlflow:
  service: {{ include "semr.mlflow.fullname" . }}
  port: 5000
  targetPort: http
  pods: {{ include "semr.selectorLabels" (list . "mlflow") | fromYaml | toJson }}
{{- end }}
{{- if include "semr.prometheusStack.has" (list . "prometheus") }}
prometheus:
  service: {{ include "semr.prometheusStack.fullname" . }}-prometheus
  port: 9090
  targetPort: 9090
  pods: {app.kubernetes.io/name: prometheus, operator.prometheus.io/name: {{ include "semr.prometheusStack.fullname" . }}-prometheus}
{{- end }}
{{- if .Values.evolution.enabled }}
evolution:
  service: {{ include "semr.evolution.fullname" . }}
  port: 8500
  targetPort: http
  pods: {{ include "semr.selectorLabels" (list . "evolution") | fromYaml | toJson }}
{{- end }}
{{- end -}}

{{/* What is opened, as YAML: targets with their `host` and `nodePort`. Empty for gateway.type none. */}}
{{- define "semr.gateway.opened" -}}
{{- if ne .Values.gateway.type "none" -}}
{{- $root := . -}}
{{- $opened := dict -}}
{{- range $name, $target := include "semr.gateway.targets" . | fromYaml -}}
{{- $endpoint := index $root.Values.gateway.endpoints $name -}}
{{- if $endpoint.enabled -}}
{{- $host := $endpoint.host | default (printf "%s.%s" $name $root.Values.general.host) -}}
{{- $_ := set $opened $name (merge (dict "host" $host "nodePort" ($endpoint.nodePort | int)) $target) -}}
{{- end -}}
{{- end -}}
{{- with $opened -}}{{ toYaml . }}{{- end -}}
{{- end -}}
{{- end -}}

{{/* Address of something opened, for browsers: root, name. */}}
{{- define "semr.gateway.url" -}}
{{- $root := index . 0 -}}{{- $name := index . 1 -}}
{{- $endpoint := index $root.Values.gateway.endpoints $name -}}
{{- $host := $endpoint.host | default (printf "%s.%s" $name $root.Values.general.host) -}}
{{- $gateway := $root.Values.gateway -}}
{{- if eq $gateway.type "nodePort" -}}http://{{ $root.Values.general.host }}:{{ $endpoint.nodePort | int }}
{{- else if eq $gateway.type "ingress" -}}{{ empty $gateway.ingress.tlsSecret | ternary "http" "https" }}://{{ $host }}
{{- else -}}{{ $gateway.httpRoute.tls | ternary "https" "http" }}://{{ $host }}
{{- end -}}
{{- end -}}
