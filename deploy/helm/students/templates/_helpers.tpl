{{- define "students.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "students.labels" -}}
app.kubernetes.io/name: students
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{/* The teachers' addresses from another one on for each student: students spread, and each can go on at all. */}}
{{- define "students.teachers" -}}
{{- $from := mod .index (len .teachers) | int -}}
{{- join "," (concat (slice .teachers $from) (slice .teachers 0 $from)) -}}
{{- end -}}
