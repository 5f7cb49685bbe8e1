{{/* How flytekit in a task reaches Flyte's own bucket; its settings are apart from those of other S3 clients. */}}
{{- define "semr.flyte.clientEnv" -}}
{{- if index .Values "flyte-binary" "enabled" }}
- name: FLYTE_AWS_ENDPOINT
  value: {{ include "semr.objectStore.endpoint" . | quote }}
- name: FLYTE_AWS_ACCESS_KEY_ID
  valueFrom:
    secretKeyRef: {name: {{ include "semr.objectStore.secret" . }}, key: flyte-access-key}
- name: FLYTE_AWS_SECRET_ACCESS_KEY
  valueFrom:
    secretKeyRef: {name: {{ include "semr.objectStore.secret" . }}, key: flyte-secret-key}
{{- end }}
{{- end -}}

{{/* Settings that Flyte reads after those of its own chart. */}}
{{- define "semr.flyte.config" -}}
{{- $endpoint := include "semr.objectStore.endpoint" . -}}
database:
  postgres:
    host: {{ include "semr.postgresql.host" . }}
    port: {{ include "semr.postgresql.port" . }}
    username: {{ .Values.postgresql.databases.flyte }}
    dbname: {{ .Values.postgresql.databases.flyte }}
    options: sslmode={{ include "semr.postgresql.sslMode" . }}{{ with include "semr.postgresql.rootCertificate" . }} sslrootcert={{ . }}{{ end }}
    passwordPath: /etc/semr/database/password
storage:
  type: stow
  stow:
    kind: s3
    config:
      # The key is in the environment, where Flyte's client looks for it with this type.
      auth_type: iam
      endpoint: {{ $endpoint }}
      region: {{ .Values.minio.region }}
      disable_ssl: {{ hasPrefix "http://" $endpoint }}
      v2_signing: false
  container: {{ .Values.minio.flyteBucket }}
  {{- if and (ne .Values.gateway.type "none") .Values.gateway.endpoints.s3.enabled .Values.minio.enabled }}
  # pyflyte uploads code to a signed address, so it has to be one that it reaches.
  signedURL:
    stowConfigOverride:
      endpoint: {{ include "semr.gateway.url" (list . "s3") }}
  {{- end }}
propeller:
  rawoutput-prefix: s3://{{ .Values.minio.flyteBucket }}/data
  limit-namespace: {{ .Release.Namespace }}
# All projects and domains in the release's namespace: there are the contract, the PodTemplate and the network policies.
namespace_mapping:
  template: {{ .Release.Namespace }}
flyteadmin:
  k8sServiceAccount: {{ include "semr.tasks.fullname" . }}
{{- /* Flyte writes its own into every task that asks for nothing, over what the PodTemplate has: by default a limit of 200 MB. */}}
task_resources:
  defaults:
    cpu: {{ dig "requests" "cpu" "250m" .Values.flyte.taskPodTemplate.resources | quote }}
    memory: {{ dig "requests" "memory" "512Mi" .Values.flyte.taskPodTemplate.resources | quote }}
  limits: {{- toYaml .Values.flyte.taskLimits | nindent 4 }}
plugins:
  k8s:
    default-pod-template-name: {{ include "semr.tasks.fullname" . }}
    default-cpus: {{ dig "requests" "cpu" "250m" .Values.flyte.taskPodTemplate.resources | quote }}
    default-memory: {{ dig "requests" "memory" "512Mi" .Values.flyte.taskPodTemplate.resources | quote }}
    default-pod-security-context: {{- include "semr.podSecurityContext" .Values.flyte.taskPodTemplate.runAsUser | nindent 6 }}
    default-security-context:
      allowPrivilegeEscalation: false
      runAsNonRoot: true
      capabilities:
        drop: [ALL]
  ray:
    # The plug-in's own default opens a NodePort for each job.
    serviceType: ClusterIP
    serviceAccount: {{ include "semr.tasks.fullname" . }}
{{- end -}}
