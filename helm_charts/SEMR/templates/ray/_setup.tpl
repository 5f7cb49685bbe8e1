{{/* The job that gives a new RayService its first application. */}}
{{- define "semr.ray.servingSetupSpec" }}
backoffLimit: 20
template:
  metadata:
    labels: {{- include "semr.podLabels" (list . "serving-setup") | nindent 6 }}
  spec:
    restartPolicy: OnFailure
    serviceAccountName: {{ include "semr.component.fullname" (list . "serving-setup") }}
    automountServiceAccountToken: true
    securityContext: {{- include "semr.podSecurityContext" .Values.ray.runAsUser | nindent 6 }}
    {{- with include "semr.scheduling" (list . .Values.ray.serving.head) | trim }}{{ . | nindent 4 }}{{ end }}
    containers:
      - name: setup
        image: {{ include "semr.rayImage" . }}
        imagePullPolicy: {{ .Values.general.imagePullPolicy }}
        securityContext: {{- include "semr.containerSecurityContext" . | nindent 10 }}
        command: [python, -m, semr.deployment.standby]
        env:
          - {name: SEMR_RAY_SERVICE, value: {{ printf "%s/%s" .Release.Namespace (include "semr.rayServing.fullname" .) }}}
          - {name: HOME, value: /tmp}
        resources: {{- toYaml .Values.ray.serving.setupResources | nindent 10 }}
        volumeMounts:
          - {name: tmp, mountPath: /tmp}
    volumes:
      - {name: tmp, emptyDir: {}}
{{- end }}
