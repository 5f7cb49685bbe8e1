{{/* A pod of `helm test`: root, what it asks, image, user, script, env, and as text volumeMounts and volumes. */}}
{{- define "semr.test.pod" }}
apiVersion: v1
kind: Pod
metadata:
  name: {{ include "semr.component.fullname" (list .root (printf "test-%s" .what)) }}
  namespace: {{ .root.Release.Namespace }}
  labels: {{- include "semr.labels" (list .root "test") | nindent 4 }}
  annotations:
    helm.sh/hook: test
    helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
spec:
  restartPolicy: Never
  serviceAccountName: {{ include "semr.component.fullname" (list .root "test") }}
  automountServiceAccountToken: false
  securityContext: {{- include "semr.podSecurityContext" .user | nindent 4 }}
  {{- with include "semr.scheduling" (list .root dict) | trim }}{{ . | nindent 2 }}{{ end }}
  containers:
    - name: check
      image: {{ include "semr.image" .image }}
      imagePullPolicy: {{ .root.Values.general.imagePullPolicy }}
      securityContext: {{- include "semr.containerSecurityContext" .root | nindent 8 }}
      command: [sh, -euc]
      args:
        - |
          {{- .script | nindent 10 }}
      env: {{- toYaml .env | nindent 8 }}
      resources:
        requests: {cpu: 10m, memory: 16Mi}
        limits: {memory: 32Mi}
      {{- with .volumeMounts }}
      volumeMounts: {{- . | nindent 8 }}
      {{- end }}
  {{- with .volumes }}
  volumes: {{- . | nindent 4 }}
  {{- end }}
{{- end }}
