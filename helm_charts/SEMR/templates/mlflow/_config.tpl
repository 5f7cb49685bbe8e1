{{/* What the server reads from its environment, and the settings of basic authentication, which are no variables. */}}
{{- define "semr.mlflow.config" -}}
{{- $name := include "semr.mlflow.fullname" . -}}
{{- $hosts := list "localhost" "127.0.0.1" $name (printf "%s.%s" $name .Release.Namespace) (printf "%s.%s.svc" $name .Release.Namespace) (include "semr.serviceHost" (list . $name)) -}}
{{- $origins := .Values.mlflow.extraCorsOrigins -}}
{{- if and (ne .Values.gateway.type "none") .Values.gateway.endpoints.mlflow.enabled -}}
{{- $url := include "semr.gateway.url" (list . "mlflow") -}}
{{- $hosts = append $hosts (urlParse $url).hostname -}}
{{- $origins = append $origins $url -}}
{{- end -}}
{{- /* A host is matched with its port. Private addresses are those of pods, under which Prometheus asks. */ -}}
{{- $allowed := list -}}
{{- range $hosts | uniq }}{{ $allowed = concat $allowed (list . (printf "%s:*" .)) }}{{ end -}}
{{- $allowed = concat $allowed (list "10.*" "192.168.*") -}}
{{- range untilStep 16 32 1 }}{{ $allowed = append $allowed (printf "172.%d.*" .) }}{{ end -}}
{{- $allowed = concat $allowed (list "[[]fc*" "[[]fd*") .Values.mlflow.extraAllowedHosts -}}
{{- $database := printf "postgresql+psycopg2://%s@%s:%s/%s?sslmode=%s" .Values.postgresql.databases.mlflow (include "semr.postgresql.host" .) (include "semr.postgresql.port" .) .Values.postgresql.databases.mlflow (include "semr.postgresql.sslMode" .) -}}
# libpq takes the password from PGPASSWORD: it is in no URI and no command line.
MLFLOW_BACKEND_STORE_URI: {{ $database | quote }}
{{- with include "semr.postgresql.rootCertificate" . }}
PGSSLROOTCERT: {{ . }}
{{- end }}
MLFLOW_ARTIFACTS_DESTINATION: {{ printf "s3://%s" .Values.contract.artifactsBucket | quote }}
MLFLOW_SERVE_ARTIFACTS: "true"
MLFLOW_S3_ENDPOINT_URL: {{ include "semr.objectStore.endpoint" . | quote }}
AWS_DEFAULT_REGION: {{ .Values.minio.region | quote }}
MLFLOW_SERVER_ALLOWED_HOSTS: {{ join "," $allowed | quote }}
{{- with $origins }}
MLFLOW_SERVER_CORS_ALLOWED_ORIGINS: {{ join "," . | quote }}
{{- end }}
# Background jobs double the time to start and are not used.
MLFLOW_SERVER_ENABLE_JOB_EXECUTION: "false"
MLFLOW_DISABLE_TELEMETRY: "true"
HOME: /tmp
PYTHONPATH: /etc/mlflow/plugin
{{- if .Values.mlflow.auth.enabled }}
MLFLOW_AUTH_CONFIG_PATH: /etc/mlflow/auth/basic_auth.ini
basic_auth.ini: |
  [mlflow]
  default_permission = READ
  database_uri = {{ $database }}
  admin_username = {{ .Values.mlflow.auth.username }}
  authorization_function = mlflow.server.auth:authenticate_request_basic_auth
{{- end }}
{{- end -}}

{{/* A plug-in of MLflow, as Python finds an installed distribution. */}}
{{- define "semr.mlflow.plugin" -}}
semr_proxied_s3.py: |
  {{- .Files.Get "files/mlflow/semr_proxied_s3.py" | trim | nindent 2 }}
entry_points.txt: |
  {{- .Files.Get "files/mlflow/entry_points.txt" | trim | nindent 2 }}
METADATA: |
  Metadata-Version: 2.1
  Name: semr-proxied-s3
  Version: 1
{{- end -}}
