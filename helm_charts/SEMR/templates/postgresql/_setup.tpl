{{/* The job that makes databases and users. */}}
{{- define "semr.postgresql.setupSpec" }}
backoffLimit: 20
template:
  metadata:
    labels: {{- include "semr.podLabels" (list . "postgresql-setup") | nindent 6 }}
  spec:
    restartPolicy: OnFailure
    serviceAccountName: {{ include "semr.postgresql.fullname" . }}
    automountServiceAccountToken: false
    securityContext: {{- include "semr.podSecurityContext" .Values.postgresql.runAsUser | nindent 6 }}
    {{- with include "semr.scheduling" (list . .Values.postgresql) | trim }}{{ . | nindent 4 }}{{ end }}
    containers:
      - name: setup
        image: {{ include "semr.image" .Values.postgresql.image }}
        imagePullPolicy: {{ .Values.general.imagePullPolicy }}
        securityContext: {{- include "semr.containerSecurityContext" . | nindent 10 }}
        command: [bash, -euo, pipefail, -c]
        args:
          - |
            until pg_isready --quiet; do echo "waiting for the server"; sleep 2; done
            # Passwords come as variables of psql, read from the environment: they are in no command line.
            make_database() {
              psql --no-psqlrc --quiet --set=ON_ERROR_STOP=1 --set=name="$1" <<SQL
            \getenv password $2
            SELECT format('CREATE ROLE %I LOGIN', :'name')
              WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'name') \gexec
            ALTER ROLE :"name" LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD :'password';
            SELECT format('CREATE DATABASE %I OWNER %I', :'name', :'name')
              WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = :'name') \gexec
            REVOKE CONNECT ON DATABASE :"name" FROM PUBLIC;
            SQL
            }
            make_database {{ .Values.postgresql.databases.mlflow | quote }} MLFLOW_PASSWORD
            make_database {{ .Values.postgresql.databases.flyte | quote }} FLYTE_PASSWORD
            echo "databases and users are there"
        env:
          - {name: PGHOST, value: {{ include "semr.postgresql.fullname" . }}}
          - {name: PGUSER, value: postgres}
          {{- range $variable, $key := dict "PGPASSWORD" "postgres-password" "MLFLOW_PASSWORD" "mlflow-password" "FLYTE_PASSWORD" "flyte-password" }}
          - name: {{ $variable }}
            valueFrom:
              secretKeyRef: {name: {{ include "semr.postgresql.secret" $ }}, key: {{ $key }}}
          {{- end }}
        resources: {{- toYaml .Values.postgresql.setupResources | nindent 10 }}
        volumeMounts:
          - {name: tmp, mountPath: /tmp}
    volumes:
      - {name: tmp, emptyDir: {}}
{{- end }}
