{{/* The job that makes buckets and users: each consumer sees its own buckets and nothing else. */}}
{{- define "semr.minio.policy" }}
{{- $buckets := list }}{{- $objects := list }}
{{- range . }}
{{- $buckets = append $buckets (printf "arn:aws:s3:::%s" .) }}{{- $objects = append $objects (printf "arn:aws:s3:::%s/*" .) }}
{{- end }}
{{- dict "Version" "2012-10-17" "Statement" (list
  (dict "Effect" "Allow" "Action" (list "s3:ListBucket" "s3:GetBucketLocation" "s3:ListBucketMultipartUploads") "Resource" $buckets)
  (dict "Effect" "Allow" "Action" (list "s3:GetObject" "s3:PutObject" "s3:DeleteObject" "s3:AbortMultipartUpload" "s3:ListMultipartUploadParts") "Resource" $objects)
) | toPrettyJson }}
{{- end }}

{{- define "semr.minio.setupData" }}
semr.json: |
  {{- include "semr.minio.policy" (list .Values.contract.datasetsBucket .Values.contract.checkpointsBucket) | nindent 2 }}
mlflow.json: |
  {{- include "semr.minio.policy" (list .Values.contract.artifactsBucket) | nindent 2 }}
flyte.json: |
  {{- include "semr.minio.policy" (list .Values.minio.flyteBucket) | nindent 2 }}
setup.sh: |
  set -eu
  until printf '%s\n%s\n' "$ROOT_USER" "$ROOT_PASSWORD" | mc alias set store "$ENDPOINT" >/dev/null 2>&1; do
    echo "waiting for the server"
    sleep 2
  done
  for bucket in $BUCKETS; do
    mc mb --ignore-existing "store/$bucket"
  done
  # A user that is there gets the secret key that is wanted now.
  make_user() {
    printf '%s\n%s\n' "$2" "$3" | mc admin user add store
    mc admin policy create store "semr-$1" "/setup/$1.json"
    # It fails when the policy is attached already.
    mc admin policy attach store "semr-$1" --user "$2" || case "$(mc admin user info store "$2")" in
      *"semr-$1"*) ;;
      *) exit 1 ;;
    esac
  }
  make_user mlflow "$MLFLOW_ACCESS_KEY" "$MLFLOW_SECRET_KEY"
  make_user flyte "$FLYTE_ACCESS_KEY" "$FLYTE_SECRET_KEY"
  {{- if include "semr.needsContract" . }}
  make_user semr "$SEMR_ACCESS_KEY" "$SEMR_SECRET_KEY"
  {{- end }}
  echo "buckets and users are there"
{{- end }}

{{- define "semr.minio.setupSpec" }}
backoffLimit: 20
template:
  metadata:
    labels: {{- include "semr.podLabels" (list . "minio-setup") | nindent 6 }}
    annotations:
      checksum/config: {{ include "semr.minio.setupData" . | sha256sum }}
  spec:
    restartPolicy: OnFailure
    serviceAccountName: {{ include "semr.minio.fullname" . }}
    automountServiceAccountToken: false
    securityContext: {{- include "semr.podSecurityContext" .Values.minio.runAsUser | nindent 6 }}
    {{- with include "semr.scheduling" (list . .Values.minio) | trim }}{{ . | nindent 4 }}{{ end }}
    containers:
      - name: setup
        image: {{ include "semr.image" .Values.minio.clientImage }}
        imagePullPolicy: {{ .Values.general.imagePullPolicy }}
        securityContext: {{- include "semr.containerSecurityContext" . | nindent 10 }}
        command: [sh, /setup/setup.sh]
        env:
          - {name: ENDPOINT, value: {{ printf "http://%s:9000" (include "semr.minio.fullname" .) }}}
          - {name: MC_CONFIG_DIR, value: /tmp/mc}
          - {name: BUCKETS, value: {{ list .Values.contract.datasetsBucket .Values.contract.checkpointsBucket .Values.contract.artifactsBucket .Values.minio.flyteBucket | uniq | join " " | quote }}}
          {{- range list "root-user" "root-password" "mlflow-access-key" "mlflow-secret-key" "flyte-access-key" "flyte-secret-key" }}
          - name: {{ . | upper | replace "-" "_" }}
            valueFrom:
              secretKeyRef: {name: {{ include "semr.objectStore.secret" $ }}, key: {{ . }}}
          {{- end }}
          {{- if include "semr.needsContract" . }}
          {{- range list "ACCESS_KEY" "SECRET_KEY" }}
          - name: SEMR_{{ . }}
            valueFrom:
              secretKeyRef: {name: {{ include "semr.contract.secret" $ }}, key: SEMR_OBJECT_STORE_{{ . }}}
          {{- end }}
          {{- end }}
        resources: {{- toYaml .Values.minio.setupResources | nindent 10 }}
        volumeMounts:
          - {name: setup, mountPath: /setup, readOnly: true}
          - {name: tmp, mountPath: /tmp}
    volumes:
      - name: setup
        configMap: {name: {{ include "semr.component.fullname" (list . "minio-setup") }}}
      - {name: tmp, emptyDir: {}}
{{- end }}
