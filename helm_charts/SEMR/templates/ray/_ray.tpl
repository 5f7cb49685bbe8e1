{{/* The specification of a Ray cluster: root, kind (`jobs` or `serving`). One definition for RayCluster and RayService. */}}
{{- define "semr.ray.clusterSpec" -}}
{{- $root := index . 0 -}}{{- $kind := index . 1 -}}
{{- $cluster := index $root.Values.ray $kind -}}
{{- $component := printf "ray-%s" $kind -}}
rayVersion: {{ $root.Values.ray.version | quote }}
# Nobody submits a job without the token.
authOptions:
  mode: token
  secretName: {{ include "semr.ray.secret" $root }}
{{- if include "semr.redis.needed" $root }}
gcsFaultToleranceOptions:
  redisAddress: {{ include "semr.redis.address" $root | quote }}
  redisPassword:
    valueFrom:
      secretKeyRef: {name: {{ include "semr.redis.secret" $root }}, key: redis-password}
{{- end }}
{{- if and (eq $kind "jobs") $cluster.autoscaling }}
enableInTreeAutoscaling: true
autoscalerOptions:
  version: v2
  idleTimeoutSeconds: {{ $cluster.idleTimeoutSeconds }}
  imagePullPolicy: {{ $root.Values.general.imagePullPolicy }}
  resources: {{- toYaml $cluster.autoscalerResources | nindent 4 }}
  volumeMounts:
    - {name: tmp, mountPath: /tmp}
  securityContext: {{- include "semr.containerSecurityContext" $root | nindent 4 }}
{{- end }}
headGroupSpec:
  rayStartParams:
    dashboard-host: 0.0.0.0
    num-cpus: {{ $cluster.head.numCpus | quote }}
  template: {{- include "semr.ray.podTemplate" (dict "root" $root "kind" $kind "role" "head" "values" $cluster.head "component" $component) | nindent 4 }}
{{- $groups := dict }}
{{- range $name, $group := $cluster.workerGroups }}{{ if $group.enabled }}{{ $_ := set $groups $name $group }}{{ end }}{{ end }}
{{- if not $groups }}
workerGroupSpecs: []
{{- else }}
workerGroupSpecs:
{{- /* The autoscaler changes these two fields: an upgrade leaves them as they are, so that it ends no worker. */}}
{{- $live := dict }}
{{- if and (eq $kind "jobs") $cluster.autoscaling }}
{{- $found := lookup "ray.io/v1" "RayCluster" $root.Release.Namespace (include "semr.rayJobs.fullname" $root) | default dict }}
{{- range dig "spec" "workerGroupSpecs" list $found }}{{ $_ := set $live .groupName . }}{{ end }}
{{- end }}
{{- range $name, $group := $groups }}
{{- $now := index $live $name | default dict }}
  - groupName: {{ $name }}
    replicas: {{ max ($group.minReplicas | int) (min ($group.maxReplicas | int) ($now.replicas | default $group.minReplicas | int)) }}
    {{- /* Empty too, as the operator would write it: the list would be its own from then on, and Helm 4 refuse to change it. */}}
    scaleStrategy: {{- toYaml ($now.scaleStrategy | default dict) | nindent 6 }}
    minReplicas: {{ $group.minReplicas | int }}
    maxReplicas: {{ $group.maxReplicas | int }}
    rayStartParams: {}
    template: {{- include "semr.ray.podTemplate" (dict "root" $root "kind" $kind "role" "worker" "values" $group "component" $component) | nindent 6 }}
{{- end }}
{{- end }}
{{- end -}}

{{/* When a cluster goes, the operator's job removes its state from Redis. With `helm uninstall` go the job's account and Redis too,
and the cluster would stay, half deleted, for the operator's five minutes: a new installation could not be made. */}}
{{- define "semr.ray.faultToleranceAnnotations" -}}
ray.io/gcs-ft-deletion-timeout: "60"
{{- end -}}

{{- define "semr.ray.podTemplate" -}}
{{- $root := .root -}}{{- $values := .values -}}
metadata:
  labels:
    {{- include "semr.podLabels" (list $root .component) | nindent 4 }}
    semr.io/ray-role: {{ .role }}
  annotations:
    # Not the contract's checksum: a changed endpoint must not end training jobs. See the chart's README, "Upgrades".
    semr.io/contract: {{ include "semr.contract.fullname" $root }}
    {{- with $root.Values.general.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  {{- $autoscales := and (eq .kind "jobs") $root.Values.ray.jobs.autoscaling (eq .role "head") }}
  serviceAccountName: {{ $autoscales | ternary (include "semr.component.fullname" (list $root "ray-autoscaler")) (include "semr.component.fullname" (list $root "ray")) }}
  # Only the autoscaler asks the Kubernetes API for something.
  automountServiceAccountToken: {{ $autoscales }}
  securityContext: {{- include "semr.podSecurityContext" $root.Values.ray.runAsUser | nindent 4 }}
  {{- with include "semr.scheduling" (list $root $values) | trim }}{{ . | nindent 2 }}{{ end }}
  containers:
    - name: ray-{{ .role }}
      image: {{ include "semr.rayImage" $root }}
      imagePullPolicy: {{ $root.Values.general.imagePullPolicy }}
      securityContext: {{- include "semr.containerSecurityContext" $root | nindent 8 }}
      {{- if eq .role "head" }}
      ports:
        - {name: gcs-server, containerPort: 6379}
        - {name: dashboard, containerPort: 8265}
        - {name: client, containerPort: 10001}
        - {name: serve, containerPort: 8000}
        - {name: metrics, containerPort: 8080}
        - {name: as-metrics, containerPort: 44217}
        - {name: dash-metrics, containerPort: 44227}
      {{- else }}
      ports:
        - {name: serve, containerPort: 8000}
        - {name: metrics, containerPort: 8080}
      {{- end }}
      envFrom: {{- include "semr.contractEnvFrom" $root | nindent 8 }}
      env:
        {{- with include "semr.clientEnv" $root | trim }}{{ . | nindent 8 }}{{ end }}
        - {name: HOME, value: /home/semr}
        - {name: RAY_USAGE_STATS_ENABLED, value: "0"}
        # The newer Parquet reader starts 32 actors for each epoch.
        - {name: RAY_DATA_USE_DATASOURCE_V2, value: "0"}
        # Jobs make themselves nice (semr.job_entry); by default every worker would be, replicas too.
        - {name: RAY_worker_niceness, value: "0"}
        {{- if and $root.Values.ray.serving.haproxy (or (eq .kind "serving") (not $root.Values.ray.serving.enabled)) }}
        - {name: RAY_SERVE_ENABLE_HA_PROXY, value: "1"}
        - {name: RAY_SERVE_THROUGHPUT_OPTIMIZED, value: "1"}
        {{- end }}
        {{- with include "semr.prometheus.url" $root }}
        - {name: RAY_PROMETHEUS_HOST, value: {{ . | quote }}}
        {{- end }}
        {{- if and (eq .role "head") (include "semr.redis.needed" $root) }}
        # Workers wait this long for a head that comes back.
        - {name: RAY_gcs_rpc_server_reconnect_timeout_s, value: "600"}
        {{- end }}
      resources:
        {{- $resources := deepCopy $values.resources }}
        {{- if $values.gpus }}
        {{- $_ := set $resources "limits" (merge (dict "nvidia.com/gpu" ($values.gpus | int)) ($resources.limits | default dict)) }}
        {{- end }}
        {{- toYaml $resources | nindent 8 }}
      # Startup, liveness and readiness probes are put in by the KubeRay operator, which knows Ray's health paths and, in a
      # RayService, when a worker has a proxy.
      volumeMounts:
        - {name: tmp, mountPath: /tmp}
        - {name: home, mountPath: /home/semr}
  # The operator adds shared memory for Ray's object store.
  volumes:
    - {name: tmp, emptyDir: {}}
    - {name: home, emptyDir: {}}
{{- end -}}
