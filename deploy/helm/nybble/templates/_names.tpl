{{- define "nybble.name" -}}
{{- contains .Chart.Name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) | trunc 46 | trimSuffix "-" }}
{{- end }}

{{- define "nybble.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: serve
{{- end }}

{{- define "nybble.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "nybble.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}{{ .Values.serviceAccount.name | default (include "nybble.name" .) }}{{ else }}{{ .Values.serviceAccount.name | default "default" }}{{ end }}
{{- end }}

{{- define "nybble.image" -}}
{{- $tag := .Values.image.tag | default (eq .Values.engine "cpu" | ternary "cpu" "tensorrt-llm") -}}
{{- if .Values.image.digest }}{{ .Values.image.repository }}@{{ .Values.image.digest }}{{ else }}{{ .Values.image.repository }}:{{ $tag }}{{ end }}
{{- end }}

{{- /* The folder of a build: a digest of everything its content depends on. Other inputs, another folder. */ -}}
{{- define "nybble.buildKey" -}}
{{- $inputs := dict "image" (include "nybble.image" .) "source" .Values.model.source "context" .Values.model.contextTokens "kv" .Values.model.kvCacheDtype "device" .Values.device "tensor" .Values.parallel.tensor "seqs" .Values.settings.maxNumSeqs "version" .Values.build.tensorrtLlmVersion "gpus" .Values.build.numGpus "args" .Values.build.extraArgs -}}
{{- $inputs | toJson | sha256sum | trunc 16 }}
{{- end }}

{{- define "nybble.enginesClaim" -}}
{{- .Values.build.storage.existingClaim | default (printf "%s-engines" (include "nybble.name" .)) }}
{{- end }}

{{- /* What the service is given as its DIR. */ -}}
{{- define "nybble.directory" -}}
{{- if .Values.build.enabled }}/engines/{{ include "nybble.buildKey" . }}
{{- else }}{{ include "nybble.checkpoint" . }}{{ end }}
{{- end }}

{{- define "nybble.checkpoint" -}}
{{- if eq .Values.model.source.type "demo" }}/opt/nybble/demo{{ else }}/checkpoint{{ end }}
{{- end }}
