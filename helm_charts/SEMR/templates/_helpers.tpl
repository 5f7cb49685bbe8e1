{{/* Names. Everything is called <release>-<component>, so that two releases can share a namespace. */}}

{{- define "semr.component.fullname" -}}
{{- $root := index . 0 -}}
{{- printf "%s-%s" $root.Release.Name (index . 1) | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "semr.contract.fullname" -}}{{ include "semr.component.fullname" (list . "contract") }}{{- end -}}
{{- define "semr.postgresql.fullname" -}}{{ include "semr.component.fullname" (list . "postgresql") }}{{- end -}}
{{- define "semr.minio.fullname" -}}{{ include "semr.component.fullname" (list . "minio") }}{{- end -}}
{{- define "semr.mlflow.fullname" -}}{{ include "semr.component.fullname" (list . "mlflow") }}{{- end -}}
{{- define "semr.rayJobs.fullname" -}}{{ include "semr.component.fullname" (list . "ray") }}{{- end -}}
{{- define "semr.rayServing.fullname" -}}{{ include "semr.component.fullname" (list . "serving") }}{{- end -}}
{{- define "semr.redis.fullname" -}}{{ include "semr.component.fullname" (list . "redis") }}{{- end -}}
{{- define "semr.evolution.fullname" -}}{{ include "semr.component.fullname" (list . "evolution") }}{{- end -}}
{{- define "semr.tasks.fullname" -}}{{ include "semr.component.fullname" (list . "tasks") }}{{- end -}}

{{/* Names of the other charts' objects, by their own formulas. */}}

{{- define "semr.subchart.fullname" -}}
{{- $root := index . 0 -}}{{- $name := index . 1 -}}
{{- if contains $name $root.Release.Name -}}{{ $root.Release.Name }}{{- else -}}{{ printf "%s-%s" $root.Release.Name $name }}{{- end -}}
{{- end -}}

{{- define "semr.flyte.fullname" -}}
{{- $values := index .Values "flyte-binary" -}}
{{- $values.fullnameOverride | default (include "semr.subchart.fullname" (list . ($values.nameOverride | default "flyte-binary"))) | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "semr.prometheusStack.fullname" -}}
{{- $values := index .Values "kube-prometheus-stack" -}}
{{- $values.fullnameOverride | default (include "semr.subchart.fullname" (list . ($values.nameOverride | default "kube-prometheus-stack"))) | trunc 26 | trimSuffix "-" -}}
{{- end -}}

{{- define "semr.grafana.fullname" -}}
{{- $values := (index .Values "kube-prometheus-stack").grafana | default dict -}}
{{- $values.fullnameOverride | default (include "semr.subchart.fullname" (list . ($values.nameOverride | default "grafana"))) | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* Labels: list of root and component. */}}

{{- define "semr.selectorLabels" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: semr
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- define "semr.labels" -}}
{{- $root := index . 0 -}}
{{ include "semr.selectorLabels" . }}
app.kubernetes.io/part-of: semr
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* Labels of pods have no versions: an upgrade of the chart alone restarts nothing. */}}
{{- define "semr.podLabels" -}}
{{- $root := index . 0 -}}
{{ include "semr.selectorLabels" . }}
app.kubernetes.io/part-of: semr
{{- with $root.Values.general.podLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Images. */}}

{{- define "semr.image" -}}
{{- printf "%s:%s" .repository .tag -}}
{{- end -}}

{{/* An image of SEMR's own: root, values of `image`, name. */}}
{{- define "semr.ownImage" -}}
{{- $root := index . 0 -}}{{- $image := index . 1 -}}
{{- $repository := $image.repository | default (printf "%s/%s" (trimSuffix "/" $root.Values.general.imageRegistry) (index . 2)) -}}
{{- printf "%s:%s" $repository ($image.tag | default $root.Values.general.imageTag | default $root.Chart.AppVersion) -}}
{{- end -}}

{{- define "semr.rayImage" -}}{{ include "semr.ownImage" (list . .Values.ray.image "semr-ray") }}{{- end -}}

{{/* Where pods run: root and the component's values. */}}
{{- define "semr.scheduling" -}}
{{- $root := index . 0 -}}{{- $values := index . 1 -}}{{- $general := $root.Values.general -}}
{{- $selector := mergeOverwrite (deepCopy $general.nodeSelector) ($values.nodeSelector | default dict) -}}
{{- with $values.architecture }}{{- $_ := set $selector "kubernetes.io/arch" . }}{{- end -}}
{{- with $selector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with concat $general.tolerations ($values.tolerations | default list) }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity | default $general.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $general.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $general.imagePullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Pod Security "restricted". The group is that of the user, so that volumes can be written. */}}
{{- define "semr.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: {{ . }}
runAsGroup: {{ . }}
fsGroup: {{ . }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "semr.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* A volume for data: root, the component's values, name of the claim. */}}
{{- define "semr.dataVolume" -}}
{{- $values := index . 1 -}}
- name: data
{{- if $values.persistence.enabled }}
  persistentVolumeClaim:
    claimName: {{ $values.persistence.existingClaim | default (index . 2) }}
{{- else }}
  emptyDir: {}
{{- end }}
{{- end -}}

{{/* A PersistentVolumeClaim that outlives the release: root, the component's values, component. */}}
{{- define "semr.dataClaim" -}}
{{- $root := index . 0 -}}{{- $values := index . 1 -}}{{- $component := index . 2 -}}
{{- if and $values.persistence.enabled (not $values.persistence.existingClaim) }}
apiVersion: v1
kind: PersistentVolumeClaim
metadata:
  name: {{ include "semr.component.fullname" (list $root $component) }}
  namespace: {{ $root.Release.Namespace }}
  labels: {{- include "semr.labels" (list $root $component) | nindent 4 }}
  annotations:
    # Data are removed by a person, not by `helm uninstall`.
    helm.sh/resource-policy: keep
spec:
  accessModes: [ReadWriteOnce]
  {{- with $values.persistence.storageClass | default $root.Values.general.storageClass }}
  storageClassName: {{ . }}
  {{- end }}
  resources:
    requests:
      storage: {{ $values.persistence.size }}
{{- end }}
{{- end -}}

{{/* Services: where they are. Empty when there is none. */}}

{{- define "semr.serviceHost" -}}
{{- $root := index . 0 -}}
{{- printf "%s.%s.svc.%s" (index . 1) $root.Release.Namespace $root.Values.general.clusterDomain -}}
{{- end -}}

{{- define "semr.postgresql.host" -}}
{{- if .Values.postgresql.enabled -}}{{ include "semr.serviceHost" (list . (include "semr.postgresql.fullname" .)) }}
{{- else -}}{{ .Values.postgresql.external.host }}{{- end -}}
{{- end -}}
{{- define "semr.postgresql.port" -}}{{ .Values.postgresql.enabled | ternary 5432 (.Values.postgresql.external.port | int) }}{{- end -}}
{{/* Inside the cluster's network the server of this chart speaks no TLS; the network policies say who may talk to it. */}}
{{- define "semr.postgresql.sslMode" -}}{{ .Values.postgresql.enabled | ternary "disable" .Values.postgresql.external.sslMode }}{{- end -}}
{{/* Where libpq finds the authority of the server's certificate; empty where it is not looked at. */}}
{{- define "semr.postgresql.rootCertificate" -}}
{{- if and (not .Values.postgresql.enabled) .Values.postgresql.external.caSecret -}}/etc/semr/database-ca/ca.crt{{- end -}}
{{- end -}}
{{- define "semr.postgresql.caMount" -}}
{{- if include "semr.postgresql.rootCertificate" . -}}
- {name: database-ca, mountPath: /etc/semr/database-ca, readOnly: true}
{{- end -}}
{{- end -}}
{{- define "semr.postgresql.caVolume" -}}
{{- if include "semr.postgresql.rootCertificate" . -}}
- name: database-ca
  secret:
    secretName: {{ .Values.postgresql.external.caSecret }}
    items: [{key: ca.crt, path: ca.crt}]
{{- end -}}
{{- end -}}
{{- define "semr.postgresql.secret" -}}{{ .Values.postgresql.auth.existingSecret | default (include "semr.postgresql.fullname" .) }}{{- end -}}

{{/* Port of a URL, written or not. */}}
{{- define "semr.urlPort" -}}
{{- regexFind ":[0-9]+$" (urlParse .).host | trimPrefix ":" | default (hasPrefix "https://" . | ternary "443" "80") -}}
{{- end -}}

{{- define "semr.objectStore.endpoint" -}}
{{- if .Values.minio.enabled -}}http://{{ include "semr.serviceHost" (list . (include "semr.minio.fullname" .)) }}:9000
{{- else -}}{{ .Values.minio.external.endpoint }}{{- end -}}
{{- end -}}
{{- define "semr.objectStore.secret" -}}{{ .Values.minio.auth.existingSecret | default (include "semr.component.fullname" (list . "object-store")) }}{{- end -}}

{{- define "semr.contract.secret" -}}{{ .Values.contract.existingSecret | default (include "semr.contract.fullname" .) }}{{- end -}}

{{- define "semr.mlflow.url" -}}
{{- if .Values.mlflow.enabled -}}http://{{ include "semr.serviceHost" (list . (include "semr.mlflow.fullname" .)) }}:5000
{{- else -}}{{ .Values.mlflow.external.url }}{{- end -}}
{{- end -}}
{{- define "semr.mlflow.secret" -}}{{ .Values.mlflow.auth.existingSecret | default (include "semr.component.fullname" (list . "mlflow-auth")) }}{{- end -}}

{{- define "semr.ray.secret" -}}{{ .Values.ray.auth.existingSecret | default (include "semr.component.fullname" (list . "ray-auth")) }}{{- end -}}
{{- define "semr.ray.dashboardUrl" -}}
{{- if .Values.ray.jobs.enabled -}}http://{{ include "semr.serviceHost" (list . (printf "%s-head-svc" (include "semr.rayJobs.fullname" .))) }}:8265
{{- else if .Values.ray.external.dashboardUrl -}}{{ .Values.ray.external.dashboardUrl }}
{{- else if .Values.ray.serving.enabled -}}{{ include "semr.ray.servingDashboardUrl" . }}{{- end -}}
{{- end -}}
{{- define "semr.ray.servingDashboardUrl" -}}
http://{{ include "semr.serviceHost" (list . (printf "%s-head-svc" (include "semr.rayServing.fullname" .))) }}:8265
{{- end -}}
{{- define "semr.ray.serveUrl" -}}
{{- if .Values.ray.serving.enabled -}}http://{{ include "semr.serviceHost" (list . (printf "%s-serve-svc" (include "semr.rayServing.fullname" .))) }}:8000
{{- else if .Values.ray.external.serveUrl -}}{{ .Values.ray.external.serveUrl }}
{{- else if .Values.ray.jobs.enabled -}}http://{{ include "semr.serviceHost" (list . (printf "%s-head-svc" (include "semr.rayJobs.fullname" .))) }}:8000{{- end -}}
{{- end -}}
{{/* Empty when it is the one of the Jobs API. */}}
{{- define "semr.ray.serveApiUrl" -}}
{{- if .Values.ray.serving.enabled -}}{{ include "semr.ray.servingDashboardUrl" . }}{{- else -}}{{ .Values.ray.external.serveApiUrl }}{{- end -}}
{{- end -}}
{{- define "semr.redis.needed" -}}
{{- if and .Values.ray.gcsFaultTolerance.enabled (or .Values.ray.jobs.enabled .Values.ray.serving.enabled) -}}true{{- end -}}
{{- end -}}
{{- define "semr.redis.secret" -}}{{ .Values.ray.gcsFaultTolerance.existingSecret | default (include "semr.redis.fullname" .) }}{{- end -}}
{{- define "semr.redis.address" -}}
{{- .Values.ray.gcsFaultTolerance.externalRedis | default (printf "%s:6379" (include "semr.serviceHost" (list . (include "semr.redis.fullname" .)))) -}}
{{- end -}}

{{/* Whether kube-prometheus-stack brings a server: root, `prometheus`, `alertmanager` or `grafana`. Each of them can be switched off. */}}
{{- define "semr.prometheusStack.has" -}}
{{- $stack := index (index . 0).Values "kube-prometheus-stack" -}}
{{- if and $stack.enabled (dig (index . 1) "enabled" true $stack) -}}true{{- end -}}
{{- end -}}

{{- define "semr.prometheus.url" -}}
{{- if include "semr.prometheusStack.has" (list . "prometheus") -}}http://{{ include "semr.serviceHost" (list . (printf "%s-prometheus" (include "semr.prometheusStack.fullname" .))) }}:9090
{{- else -}}{{ .Values.monitoring.external.prometheusUrl }}{{- end -}}
{{- end -}}
{{- define "semr.alertmanager.url" -}}
{{- if include "semr.prometheusStack.has" (list . "alertmanager") -}}http://{{ include "semr.serviceHost" (list . (printf "%s-alertmanager" (include "semr.prometheusStack.fullname" .))) }}:9093
{{- else -}}{{ .Values.monitoring.external.alertmanagerUrl }}{{- end -}}
{{- end -}}

{{- define "semr.evolution.url" -}}
{{- if .Values.evolution.enabled -}}http://{{ include "semr.serviceHost" (list . (include "semr.evolution.fullname" .)) }}:8500
{{- else -}}{{ .Values.evolution.external.url }}{{- end -}}
{{- end -}}

{{- define "semr.flyte.endpoint" -}}
{{- if index .Values "flyte-binary" "enabled" -}}{{ include "semr.serviceHost" (list . (printf "%s-grpc" (include "semr.flyte.fullname" .))) }}:8089
{{- else -}}{{ .Values.flyte.external.endpoint }}{{- end -}}
{{- end -}}

{{/* Whether pods that run SEMR's code are installed. */}}
{{- define "semr.needsContract" -}}
{{- if or .Values.ray.jobs.enabled .Values.ray.serving.enabled .Values.evolution.enabled .Values.flyte.taskPodTemplate.enabled -}}true{{- end -}}
{{- end -}}

{{/* The contract in a container of SEMR's code. */}}
{{- define "semr.contractEnvFrom" -}}
- configMapRef:
    name: {{ include "semr.contract.fullname" . }}
- secretRef:
    name: {{ include "semr.contract.secret" . }}
{{- end -}}

{{/* What the clients of MLflow and S3 read by themselves, as Settings.client_environment gives it. Ray's part is set by the
KubeRay operator in Ray's own pods. */}}
{{- define "semr.clientEnv" -}}
{{- with include "semr.mlflow.url" . }}
- name: MLFLOW_TRACKING_URI
  value: {{ . | quote }}
{{- end }}
{{- if and .Values.mlflow.enabled .Values.mlflow.auth.enabled }}
- name: MLFLOW_TRACKING_USERNAME
  value: {{ .Values.mlflow.auth.username | quote }}
- name: MLFLOW_TRACKING_PASSWORD
  valueFrom:
    secretKeyRef: {name: {{ include "semr.mlflow.secret" . }}, key: password}
{{- end }}
{{- with include "semr.objectStore.endpoint" . }}
- name: AWS_ENDPOINT_URL_S3
  value: {{ . | quote }}
- name: AWS_DEFAULT_REGION
  value: {{ $.Values.minio.region | quote }}
- name: AWS_ACCESS_KEY_ID
  valueFrom:
    secretKeyRef: {name: {{ include "semr.contract.secret" $ }}, key: SEMR_OBJECT_STORE_ACCESS_KEY}
- name: AWS_SECRET_ACCESS_KEY
  valueFrom:
    secretKeyRef: {name: {{ include "semr.contract.secret" $ }}, key: SEMR_OBJECT_STORE_SECRET_KEY}
{{- end }}
- name: MLFLOW_DISABLE_TELEMETRY
  value: "true"
{{- end -}}

{{- define "semr.rayClientEnv" -}}
{{- if include "semr.ray.dashboardUrl" . }}
- name: RAY_AUTH_MODE
  value: token
- name: RAY_AUTH_TOKEN
  valueFrom:
    secretKeyRef: {name: {{ include "semr.contract.secret" . }}, key: SEMR_RAY_AUTH_TOKEN}
{{- end }}
{{- end -}}

{{/* The value of a generated credential in base64: root, Secret, key, value for the first time. A Secret that is there is kept. */}}
{{- define "semr.keptOrNew" -}}
{{- $root := index . 0 -}}{{- $key := index . 2 -}}
{{- $secret := lookup "v1" "Secret" $root.Release.Namespace (index . 1) | default dict -}}
{{- index ($secret.data | default dict) $key | default (index . 3 | b64enc) -}}
{{- end -}}
