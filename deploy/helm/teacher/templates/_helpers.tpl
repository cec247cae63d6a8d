{{- define "teacher.name" -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "teacher.selector" -}}
app.kubernetes.io/name: teacher
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "teacher.labels" -}}
{{ include "teacher.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "teacher.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "teacher.name" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{- define "teacher.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "teacher.serverName" -}}
{{- .Values.tls.serverName | default (printf "%s.%s.svc" (include "teacher.name" .) .Release.Namespace) -}}
{{- end -}}

{{/* Seconds from the end of a pod's place in the Services to its SIGKILL: longer than all a drain may take. */}}
{{- define "teacher.graceS" -}}
{{- $needed := add .Values.termination.preStopS (.Values.config.drain_s | default 30 | float64 | ceil | int) (.Values.config.handoff_s | default 2 | float64 | ceil | int) 10 -}}
{{- if kindIs "invalid" .Values.termination.graceS -}}
{{ $needed }}
{{- else if lt (int .Values.termination.graceS) (int $needed) -}}
{{- fail (printf "termination.graceS is %v, and a drain may take %v s: preStopS + config.drain_s + config.handoff_s + 10 to end; raise it, or leave it null" .Values.termination.graceS $needed) -}}
{{- else -}}
{{ .Values.termination.graceS }}
{{- end -}}
{{- end -}}

{{/* The server's configuration: what the user says, and what the chart itself decides. */}}
{{- define "teacher.config" -}}
{{- $own := dict "host" "0.0.0.0" "port" .Values.ports.grpc -}}
{{- if .Values.metrics.enabled -}}
{{- $_ := set $own "metrics_host" "0.0.0.0" -}}
{{- $_ := set $own "metrics_port" .Values.ports.metrics -}}
{{- else -}}
{{- $_ := set $own "metrics_port" -1 -}}
{{- end -}}
{{- if .Values.tls.secretName -}}
{{- $_ := set $own "tls_cert" "/run/secrets/tls/tls.crt" -}}
{{- $_ := set $own "tls_key" "/run/secrets/tls/tls.key" -}}
{{- if .Values.tls.clientCa -}}
{{- $_ := set $own "client_ca" "/run/secrets/tls/ca.crt" -}}
{{- end -}}
{{- end -}}
{{- if .Values.auth.tokensSecretName -}}
{{- $_ := set $own "tokens" "/run/secrets/tokens/tokens.json" -}}
{{- end -}}
{{- if .Values.insecure -}}
{{- $_ := set $own "insecure" true -}}
{{- end -}}
{{- toYaml (merge $own .Values.config) -}}
{{- end -}}

{{/* What contradicts itself ends here, with a sentence. */}}
{{- define "teacher.check" -}}
{{- range $name := list "host" "port" "metrics_host" "metrics_port" "tls_cert" "tls_key" "client_ca" "tokens" "insecure" -}}
{{- if hasKey $.Values.config $name -}}
{{- fail (printf "config.%s is decided by the chart; say it by ports, metrics, tls, auth or insecure" $name) -}}
{{- end -}}
{{- end -}}
{{- if and (not .Values.insecure) (not (and .Values.tls.secretName .Values.auth.tokensSecretName)) -}}
{{- fail "a teacher for other pods needs tls.secretName and auth.tokensSecretName (README.md says how to make them), or insecure: true, said aloud" -}}
{{- end -}}
{{- if and .Values.tls.clientCa (not .Values.tls.secretName) -}}
{{- fail "tls.clientCa needs tls.secretName, whose ca.crt is the students' CA" -}}
{{- end -}}
{{- if and .Values.tls.clientCa (not .Values.insecure) (not .Values.auth.tokensSecretName) -}}
{{- fail "tls.clientCa goes with auth.tokensSecretName: Prometheus shows a token" -}}
{{- end -}}
{{- if and .Values.gpu.count (eq (.Values.config.device | default "auto") "cpu") -}}
{{- fail "gpu.count is not 0, and config.device is cpu; take one of them away" -}}
{{- end -}}
{{- if and (not .Values.metrics.enabled) (or .Values.metrics.serviceMonitor.enabled .Values.metrics.rules.enabled .Values.autoscaling.enabled) -}}
{{- fail "serviceMonitor, rules and autoscaling need metrics.enabled" -}}
{{- end -}}
{{- if and .Values.metrics.serviceMonitor.enabled .Values.auth.tokensSecretName (not .Values.metrics.serviceMonitor.tokenSecret.name) -}}
{{- fail "the metrics of a teacher with tokens ask for one: metrics.serviceMonitor.tokenSecret.name says which Secret Prometheus reads it from" -}}
{{- end -}}
{{- if and .Values.metrics.serviceMonitor.enabled .Values.tls.secretName (not .Values.metrics.serviceMonitor.caSecret.name) -}}
{{- fail "the metrics are behind TLS: metrics.serviceMonitor.caSecret.name says which Secret holds the CA" -}}
{{- end -}}
{{- if and .Values.autoscaling.enabled (gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas)) -}}
{{- fail (printf "autoscaling.minReplicas %v is more than maxReplicas %v" .Values.autoscaling.minReplicas .Values.autoscaling.maxReplicas) -}}
{{- end -}}
{{- end -}}

{{/* Kubernetes asks a gRPC port without TLS by itself; with TLS the image's own probe does. */}}
{{- define "teacher.probe" -}}
{{- if .Values.tls.secretName -}}
exec:
  command:
    - python
    - -m
    - teacher_server.probe
    - 127.0.0.1:{{ .Values.ports.grpc }}
    - --ca
    - /run/secrets/tls/ca.crt
    - --name
    - {{ include "teacher.serverName" . }}
{{- if .Values.tls.clientCa }}
    - --cert
    - /run/secrets/tls/tls.crt
    - --key
    - /run/secrets/tls/tls.key
{{- end }}
{{- else -}}
grpc:
  port: {{ .Values.ports.grpc }}
{{- end }}
periodSeconds: {{ .Values.probes.periodS }}
timeoutSeconds: 5
{{- end -}}
