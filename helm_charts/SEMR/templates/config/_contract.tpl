{{/* The contract: the keys of semr.settings that are no credentials. A key that is missing is a service that is not there. */}}
{{- define "semr.contract.data" -}}
{{- with include "semr.objectStore.endpoint" . }}
SEMR_OBJECT_STORE_ENDPOINT: {{ . | quote }}
{{- end }}
SEMR_OBJECT_STORE_REGION: {{ .Values.minio.region | quote }}
SEMR_DATASETS_BUCKET: {{ .Values.contract.datasetsBucket | quote }}
SEMR_CHECKPOINTS_BUCKET: {{ .Values.contract.checkpointsBucket | quote }}
SEMR_ARTIFACTS_BUCKET: {{ .Values.contract.artifactsBucket | quote }}
{{- with include "semr.mlflow.url" . }}
SEMR_MLFLOW_URI: {{ . | quote }}
{{- end }}
{{- with include "semr.ray.dashboardUrl" . }}
SEMR_RAY_DASHBOARD_URL: {{ . | quote }}
{{- end }}
{{- with include "semr.ray.serveUrl" . }}
SEMR_SERVE_URL: {{ . | quote }}
{{- end }}
{{- with include "semr.ray.serveApiUrl" . }}
SEMR_SERVE_API_URL: {{ . | quote }}
{{- end }}
{{- if .Values.ray.serving.enabled }}
SEMR_RAY_SERVICE: {{ printf "%s/%s" .Release.Namespace (include "semr.rayServing.fullname" .) | quote }}
{{- end }}
{{- with include "semr.prometheus.url" . }}
SEMR_PROMETHEUS_URL: {{ . | quote }}
{{- end }}
{{- with include "semr.alertmanager.url" . }}
SEMR_ALERTMANAGER_URL: {{ . | quote }}
{{- end }}
{{- with include "semr.evolution.url" . }}
SEMR_EVOLUTION_URL: {{ . | quote }}
{{- end }}
{{- with include "semr.flyte.endpoint" . }}
SEMR_FLYTE_ENDPOINT: {{ . | quote }}
{{- end }}
SEMR_FLYTE_PROJECT: {{ .Values.contract.flyteProject | quote }}
SEMR_FLYTE_DOMAIN: {{ .Values.contract.flyteDomain | quote }}
SEMR_DEPLOYMENT_TARGET: {{ .Values.contract.deploymentTarget | quote }}
{{- if include "semr.deployer.byHelm" . }}
SEMR_HELM_VALUES: {{ include "semr.inference.values" . | quote }}
{{- end }}
{{- end -}}

{{/* Values of every release of the chart semr-inference that is made here, as JSON. */}}
{{- define "semr.inference.values" -}}
{{- $general := .Values.general -}}
{{- $image := dict "repository" (printf "%s/semr-model-deployment" (trimSuffix "/" $general.imageRegistry)) "pullPolicy" $general.imagePullPolicy -}}
{{- with $general.imageTag }}{{ $_ := set $image "tag" . }}{{ end -}}
{{- $ports := list 443 -}}
{{- with include "semr.objectStore.endpoint" . }}{{ $ports = append $ports (include "semr.urlPort" . | int) }}{{ end -}}
{{- $known := dict
  "contract" (dict "configMap" (include "semr.contract.fullname" .) "secret" (include "semr.contract.secret" .))
  "image" $image
  "monitoring" (dict "enabled" .Values.monitoring.enabled "labels" .Values.monitoring.labels "scrapeInterval" .Values.monitoring.scrapeInterval)
  "networkPolicy" (dict "enabled" .Values.networkPolicy.enabled "dnsPorts" .Values.networkPolicy.dnsPorts "egressPorts" ($ports | uniq))
-}}
{{- range list "imagePullSecrets" "nodeSelector" "tolerations" "affinity" "priorityClassName" "podLabels" "podAnnotations" -}}
{{- $_ := set $known . (index $general .) -}}
{{- end -}}
{{- if and .Values.mlflow.enabled .Values.mlflow.auth.enabled -}}
{{- $_ := set $known "mlflow" (dict "existingSecret" (include "semr.mlflow.secret" .)) -}}
{{- end -}}
{{- mergeOverwrite (deepCopy $known) .Values.inference.values | toJson -}}
{{- end -}}
