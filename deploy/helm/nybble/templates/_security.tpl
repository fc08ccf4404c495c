{{- define "nybble.podSecurityContext" -}}
runAsNonRoot: true
{{ toYaml .Values.podSecurityContext }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "nybble.readOnlyRoot" -}}
{{- if kindIs "bool" .Values.readOnlyRootFilesystem }}{{ .Values.readOnlyRootFilesystem }}{{ else }}{{ eq .Values.device "cpu" }}{{ end }}
{{- end }}

{{- define "nybble.securityContext" -}}
allowPrivilegeEscalation: false
capabilities: {drop: [ALL]}
privileged: false
readOnlyRootFilesystem: {{ include "nybble.readOnlyRoot" . }}
{{- end }}
