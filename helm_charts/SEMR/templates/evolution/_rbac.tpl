{{/* Applications are deployed by changing the one RayService. */}}
{{- define "semr.deployer.rayServiceRule" -}}
- apiGroups: [ray.io]
  resources: [rayservices]
  resourceNames: [{{ include "semr.rayServing.fullname" . }}]
  verbs: [get, patch]
{{- end -}}

{{/* Whether a model is served by releases of the chart semr-inference. */}}
{{- define "semr.deployer.byHelm" -}}
{{- $targets := list .Values.contract.deploymentTarget -}}
{{- range .Values.evolution.policy.models }}{{ $targets = append $targets (.deployment_target | default "") }}{{ end -}}
{{- if has "helm" $targets -}}true{{- end -}}
{{- end -}}

{{/* What a deployment step may do, wherever it runs: change the applications of the one RayService, or, with the target helm
of the contract or of a model's policy, the objects of the chart semr-inference in this namespace. Nothing beyond the namespace. */}}
{{- define "semr.deployer.rules" -}}
{{- if .Values.ray.serving.enabled }}
{{ include "semr.deployer.rayServiceRule" . }}
{{- end }}
{{- if include "semr.deployer.byHelm" . }}
# Helm keeps its history in Secrets, whose names nobody knows before.
- apiGroups: [""]
  resources: [secrets, configmaps, services, serviceaccounts]
  verbs: [get, list, watch, create, update, patch, delete]
- apiGroups: [""]
  resources: [pods, events]
  verbs: [get, list, watch]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, update, patch, delete]
- apiGroups: [apps]
  resources: [replicasets]
  verbs: [get, list, watch]
- apiGroups: [autoscaling]
  resources: [horizontalpodautoscalers]
  verbs: [get, list, watch, create, update, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, update, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies, ingresses]
  verbs: [get, list, watch, create, update, patch, delete]
- apiGroups: [gateway.networking.k8s.io]
  resources: [httproutes]
  verbs: [get, list, watch, create, update, patch, delete]
- apiGroups: [monitoring.coreos.com]
  resources: [servicemonitors, prometheusrules]
  verbs: [get, list, watch, create, update, patch, delete]
{{- end }}
{{- end -}}

{{/* ServiceAccount, Role and RoleBinding of a deployer: root, name, component. The token is mounted only where there are rules. */}}
{{- define "semr.deployer.rbac" -}}
{{- $root := index . 0 -}}{{- $name := index . 1 -}}{{- $component := index . 2 -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ $name }}
  namespace: {{ $root.Release.Namespace }}
  labels: {{- include "semr.labels" (list $root $component) | nindent 4 }}
automountServiceAccountToken: false
{{- with include "semr.deployer.rules" $root | trim }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  name: {{ $name }}
  namespace: {{ $root.Release.Namespace }}
  labels: {{- include "semr.labels" (list $root $component) | nindent 4 }}
rules: {{- . | nindent 2 }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: {{ $name }}
  namespace: {{ $root.Release.Namespace }}
  labels: {{- include "semr.labels" (list $root $component) | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: Role
  name: {{ $name }}
subjects:
  - kind: ServiceAccount
    name: {{ $name }}
    namespace: {{ $root.Release.Namespace }}
{{- end }}
{{- end -}}
