{{/* The same expression as in semr/stack/services/prometheus.py; a test holds them equal. */}}
{{- define "semr.monitoring.rayKept" -}}
ray_(semr|serve|cluster)_.*|ray_node_(cpu|mem|gpus|disk|network)_.*|ray_component_(cpu_percentage|rss_bytes)|ray_tasks|ray_actors
{{- end -}}

{{/* Metadata of what the Prometheus operator reads: root, component. */}}
{{- define "semr.monitor.metadata" }}
metadata:
  name: {{ include "semr.component.fullname" (list .root .component) }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "semr.labels" (list .root .component) | nindent 4 }}
    {{- with .root.Values.monitoring.labels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}
