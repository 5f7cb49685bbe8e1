{{- define "semr-inference.fullname" -}}{{ .Release.Name | trunc 55 | trimSuffix "-" }}{{- end -}}

{{- define "semr-inference.selectorLabels" -}}
app.kubernetes.io/name: semr-inference
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "semr-inference.labels" -}}
{{ include "semr-inference.selectorLabels" . }}
app.kubernetes.io/component: inference
app.kubernetes.io/part-of: semr
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
semr.io/model: {{ include "semr-inference.modelLabel" . }}
{{- end -}}

{{/* MLflow allows more characters in a name than a label may have. */}}
{{- define "semr-inference.modelLabel" -}}
{{- regexReplaceAll "[^A-Za-z0-9_.-]+" .Values.model.name "-" | trunc 63 | trimAll "-_." | quote -}}
{{- end -}}

{{/* A version, given as text or as the number that YAML makes of it, as text. */}}
{{- define "semr-inference.version" -}}{{ kindIs "float64" . | ternary (. | int64) . | toString }}{{- end -}}

{{/* URI of a model: name, and a map with version and alias. */}}
{{- define "semr-inference.modelUri" -}}
{{- $choice := index . 1 -}}
{{- if toString $choice.version -}}models:/{{ index . 0 }}/{{ include "semr-inference.version" $choice.version }}
{{- else -}}models:/{{ index . 0 }}@{{ $choice.alias }}{{- end -}}
{{- end -}}

{{/* Pods of the canary where its weight is made by their number: at least one, unless it is to have no requests. */}}
{{- define "semr-inference.canaryReplicas" -}}
{{- if eq .Values.gateway.type "httpRoute" -}}
1
{{- else if eq (.Values.canary.weight | int) 0 -}}
0
{{- else -}}
{{- $pods := .Values.autoscaling.enabled | ternary .Values.autoscaling.minReplicas .Values.replicas | int -}}
{{- $weight := .Values.canary.weight | int -}}
{{- max 1 (div (add (mul $pods $weight) (div (sub 100 $weight) 2)) (sub 100 $weight)) -}}
{{- end -}}
{{- end -}}

{{/* Whether the release is there without a canary that answers. A Gateway would send requests to nobody then, and fail them; a
Service leaves out by itself who does not answer. */}}
{{- define "semr-inference.canaryNotReady" -}}
{{- $name := include "semr-inference.fullname" . -}}
{{- if and .Release.IsUpgrade (lookup "v1" "Service" .Release.Namespace $name) -}}
{{- $there := lookup "apps/v1" "Deployment" .Release.Namespace (printf "%s-canary" $name) | default dict -}}
{{- if lt (dig "status" "readyReplicas" 0 $there | int) 1 -}}true{{- end -}}
{{- end -}}
{{- end -}}

{{/* Seconds after which a rollout counts as failed: not before the start-up probe gives up. */}}
{{- define "semr-inference.progressDeadline" -}}
{{- $probe := .Values.startupProbe -}}
{{- $start := add ($probe.initialDelaySeconds | default 0 | int) (mul ($probe.periodSeconds | default 10 | int) ($probe.failureThreshold | default 3 | int)) -}}
{{- max 600 (add $start 120) -}}
{{- end -}}

{{/* Ports that pods have to reach: those of the values, and MLflow's. */}}
{{- define "semr-inference.egressPorts" -}}
{{- $ports := list -}}
{{- range .Values.networkPolicy.egressPorts }}{{ $ports = append $ports (. | int) }}{{ end -}}
{{- with .Values.mlflow.url -}}
{{- $port := regexFind ":[0-9]+$" (urlParse .).host | trimPrefix ":" | default (hasPrefix "https://" . | ternary "443" "80") -}}
{{- $ports = append $ports ($port | int) -}}
{{- end -}}
{{- $ports | uniq | toJson -}}
{{- end -}}

{{/* A track's Deployment: root, track, model choice, number of pods (empty: the autoscaler's). */}}
{{- define "semr-inference.deployment" -}}
{{- $root := index . 0 -}}{{- $track := index . 1 -}}{{- $choice := index . 2 -}}{{- $replicas := index . 3 -}}
{{- $values := $root.Values -}}
{{- $name := include "semr-inference.fullname" $root -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ $name }}{{ if eq $track "canary" }}-canary{{ end }}
  namespace: {{ $root.Release.Namespace }}
  labels:
    {{- include "semr-inference.labels" $root | nindent 4 }}
    semr.io/track: {{ $track }}
spec:
  {{- if $replicas }}
  replicas: {{ $replicas }}
  {{- end }}
  # What `helm rollback` may need besides Helm's own history.
  revisionHistoryLimit: 5
  progressDeadlineSeconds: {{ include "semr-inference.progressDeadline" $root }}
  strategy:
    type: RollingUpdate
    # A pod goes only when its successor answers: no request is failed by a new version.
    rollingUpdate: {maxUnavailable: 0, maxSurge: 1}
  selector:
    matchLabels:
      {{- include "semr-inference.selectorLabels" $root | nindent 6 }}
      semr.io/track: {{ $track }}
  template:
    metadata:
      labels:
        {{- include "semr-inference.selectorLabels" $root | nindent 8 }}
        app.kubernetes.io/component: inference
        app.kubernetes.io/part-of: semr
        semr.io/track: {{ $track }}
        semr.io/model: {{ include "semr-inference.modelLabel" $root }}
        {{- with $values.podLabels }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- with $values.podAnnotations }}
      annotations: {{- toYaml . | nindent 8 }}
      {{- end }}
    spec:
      serviceAccountName: {{ $name }}
      automountServiceAccountToken: false
      terminationGracePeriodSeconds: {{ $values.terminationGracePeriodSeconds }}
      securityContext:
        runAsNonRoot: true
        runAsUser: {{ $values.runAsUser }}
        runAsGroup: {{ $values.runAsUser }}
        fsGroup: {{ $values.runAsUser }}
        seccompProfile:
          type: RuntimeDefault
      {{- $selector := deepCopy $values.nodeSelector }}
      {{- with $values.architecture }}{{ $_ := set $selector "kubernetes.io/arch" . }}{{ end }}
      {{- with $selector }}
      nodeSelector: {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $values.tolerations }}
      tolerations: {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $values.affinity }}
      affinity: {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $values.priorityClassName }}
      priorityClassName: {{ . }}
      {{- end }}
      {{- with $values.imagePullSecrets }}
      imagePullSecrets:
        {{- range . }}
        - name: {{ . }}
        {{- end }}
      {{- end }}
      topologySpreadConstraints:
        - maxSkew: 1
          topologyKey: kubernetes.io/hostname
          whenUnsatisfiable: ScheduleAnyway
          labelSelector:
            matchLabels: {{- include "semr-inference.selectorLabels" $root | nindent 14 }}
      containers:
        - name: server
          image: {{ printf "%s:%s" $values.image.repository ($values.image.tag | default $root.Chart.AppVersion) }}
          imagePullPolicy: {{ $values.image.pullPolicy }}
          securityContext:
            allowPrivilegeEscalation: false
            readOnlyRootFilesystem: true
            runAsNonRoot: true
            capabilities:
              drop: [ALL]
          command: [python, -m, semr.inference]
          args:
            - {{ printf "--model=%s" (include "semr-inference.modelUri" (list $values.model.name $choice)) | quote }}
            - --host=0.0.0.0
            - --port=8080
            {{- if and $values.model.follow (not (toString $choice.version)) }}
            - --follow
            {{- end }}
          {{- with $values.contract.configMap }}
          envFrom:
            - configMapRef: {name: {{ . }}}
          {{- end }}
          env:
            {{- with $values.contract.secret }}
            {{- /* Of the contract's credentials, those that a model server uses. */}}
            {{- range list "SEMR_OBJECT_STORE_ACCESS_KEY" "SEMR_OBJECT_STORE_SECRET_KEY" }}
            - name: {{ . }}
              valueFrom:
                secretKeyRef: {name: {{ $values.contract.secret }}, key: {{ . }}}
            {{- end }}
            {{- end }}
            {{- with $values.mlflow.url }}
            - {name: SEMR_MLFLOW_URI, value: {{ . | quote }}}
            {{- end }}
            {{- range $variable, $key := dict "MLFLOW_TRACKING_USERNAME" "username" "MLFLOW_TRACKING_PASSWORD" "password" }}
            {{- if $values.mlflow.existingSecret }}
            - name: {{ $variable }}
              valueFrom:
                secretKeyRef: {name: {{ $values.mlflow.existingSecret }}, key: {{ $key }}}
            {{- end }}
            {{- end }}
            - {name: MLFLOW_DISABLE_TELEMETRY, value: "true"}
            - {name: HOME, value: /tmp}
            {{- with $values.extraEnv }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
          ports:
            - {name: http, containerPort: 8080}
          startupProbe:
            httpGet: {path: /v2/health/ready, port: http}
            {{- toYaml $values.startupProbe | nindent 12 }}
          livenessProbe:
            httpGet: {path: /v2/health/live, port: http}
            {{- toYaml $values.livenessProbe | nindent 12 }}
          readinessProbe:
            httpGet: {path: /v2/health/ready, port: http}
            {{- toYaml $values.readinessProbe | nindent 12 }}
          lifecycle:
            preStop:
              # Until every node knows that the pod is going, requests still come.
              exec: {command: [sleep, "5"]}
          resources:
            {{- $resources := deepCopy $values.resources }}
            {{- if $values.gpus }}
            {{- $_ := set $resources "limits" (merge (dict "nvidia.com/gpu" ($values.gpus | int)) ($resources.limits | default dict)) }}
            {{- end }}
            {{- toYaml $resources | nindent 12 }}
          volumeMounts:
            # The model is downloaded there.
            - {name: tmp, mountPath: /tmp}
      volumes:
        - {name: tmp, emptyDir: {}}
{{- end -}}

{{/* A Service: root, name, track (empty: all). */}}
{{- define "semr-inference.service" -}}
{{- $root := index . 0 -}}{{- $track := index . 2 -}}{{- $service := $root.Values.service -}}
apiVersion: v1
kind: Service
metadata:
  name: {{ index . 1 }}
  namespace: {{ $root.Release.Namespace }}
  labels:
    {{- include "semr-inference.labels" $root | nindent 4 }}
    {{- if not $track }}
    # The one that Prometheus looks at.
    semr.io/scrape: "true"
    {{- end }}
  {{- with $service.annotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  type: {{ empty $track | ternary $service.type "ClusterIP" }}
  selector:
    {{- include "semr-inference.selectorLabels" $root | nindent 4 }}
    {{- with $track }}
    semr.io/track: {{ . }}
    {{- end }}
  ports:
    - name: http
      port: {{ $service.port }}
      targetPort: http
      {{- if and (not $track) (ne $service.type "ClusterIP") $service.nodePort }}
      nodePort: {{ $service.nodePort }}
      {{- end }}
{{- end -}}
