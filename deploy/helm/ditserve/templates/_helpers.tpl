{{- define "ditserve.name" -}}
{{- if contains "ditserve" .Release.Name }}{{ .Release.Name }}{{ else }}{{ .Release.Name }}-ditserve{{ end }}
{{- end }}

{{- define "ditserve.selector" -}}
app.kubernetes.io/name: ditserve
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "ditserve.labels" -}}
{{ include "ditserve.selector" . }}
app.kubernetes.io/component: server
app.kubernetes.io/part-of: ditserve
app.kubernetes.io/version: {{ .Chart.AppVersion }}
{{- end }}

{{/* Of a list: the chart's scope, and what its name ends with. */}}
{{- define "ditserve.metadata" -}}
{{- $chart := index . 0 -}}
name: {{ include "ditserve.name" $chart }}{{ index . 1 }}
labels:
  {{- include "ditserve.labels" $chart | nindent 2 }}
  app.kubernetes.io/managed-by: {{ $chart.Release.Service }}
  helm.sh/chart: {{ $chart.Chart.Name }}-{{ $chart.Chart.Version }}
{{- end }}

{{- define "ditserve.port" -}}
{{ regexFind "[0-9]+$" . }}
{{- end }}

{{- define "ditserve.scaling" -}}
{{/* A pod takes minutes until it has warmed up, and minutes to drain. */ -}}
scaleUp:
  stabilizationWindowSeconds: 60
  policies: [{type: Pods, value: 1, periodSeconds: 120}]
scaleDown:
  stabilizationWindowSeconds: 600
  policies: [{type: Pods, value: 1, periodSeconds: 300}]
{{- end }}
