{{- /*
Everything here is reckoned as `nybble plan` does it, from files/devices.json, which is written from the same
constants (docs/capacity.md); a test compares the results. All sizes are bytes.
*/ -}}

{{- define "nybble.devices" -}}{{ .Files.Get "files/devices.json" }}{{- end }}

{{- define "nybble.device" -}}
{{- $numbers := include "nybble.devices" . | fromJson -}}
{{- index $numbers.devices .Values.device | toJson }}
{{- end }}

{{- define "nybble.numGpus" -}}{{ mul .Values.parallel.tensor .Values.parallel.pipeline }}{{- end }}

{{- define "nybble.gpusPerPod" -}}{{ div (include "nybble.numGpus" . | int64) (.Values.parallel.numNodes | int64) }}{{- end }}

{{- /* A Kubernetes quantity of memory in bytes. */ -}}
{{- define "nybble.bytes" -}}
{{- $units := dict "" 1 "k" 1000 "M" 1000000 "G" 1000000000 "T" 1000000000000 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 -}}
{{- $number := regexFind "^[0-9]+" . -}}
{{- $unit := trimPrefix $number . -}}
{{- if or (not $number) (not (hasKey $units $unit)) }}{{ fail (printf "%q is no amount of memory; expected a whole number with Ki, Mi, Gi, Ti, k, M, G or T" .) }}{{ end -}}
{{- mul (int64 $number) (index $units $unit | int64) }}
{{- end }}

{{- /* The KV cache of one replica, all its devices together. */ -}}
{{- define "nybble.kvCacheBytes" -}}
{{- $numbers := include "nybble.devices" . | fromJson -}}
{{- $device := include "nybble.device" . | fromJson -}}
{{- $weights := .Values.model.weightBytes | int64 -}}
{{- if eq .Values.device "cpu" -}}
{{- $left := sub (include "nybble.bytes" .Values.resources.memory | int64) $weights -}}
{{- max 0 (div (mul $left (int64 $numbers.cpuKvCachePermille)) 1000) -}}
{{- else -}}
{{- $gpus := include "nybble.numGpus" . | int64 -}}
{{- $reserve := add (int64 $numbers.gpuRuntimeBytes) ($device.unifiedMemory | ternary (int64 $numbers.hostBytes) 0) -}}
{{- $left := sub (mul (sub (int64 $device.memoryBytes) $reserve) $gpus) $weights -}}
{{- max 0 (div (mul $left (int64 $numbers.kvCachePermille)) 1000) -}}
{{- end -}}
{{- end }}

{{- define "nybble.numKvTokens" -}}
{{- div (include "nybble.kvCacheBytes" . | int64) (.Values.model.kvBytesPerToken | int64) }}
{{- end }}

{{- /* Memory of one pod: given on a CPU; beside a GPU with its own memory, the host's part and the weights on
their way through it; on unified memory all but the operating system's part. */ -}}
{{- define "nybble.podMemoryBytes" -}}
{{- $numbers := include "nybble.devices" . | fromJson -}}
{{- $device := include "nybble.device" . | fromJson -}}
{{- if eq .Values.device "cpu" -}}
{{- include "nybble.bytes" .Values.resources.memory -}}
{{- else if $device.unifiedMemory -}}
{{- sub (int64 $device.memoryBytes) (int64 $numbers.hostBytes) -}}
{{- else -}}
{{- add (int64 $numbers.hostBytes) (div (.Values.model.weightBytes | int64) (.Values.parallel.numNodes | int64)) -}}
{{- end -}}
{{- end }}

{{- /* What a pod is guaranteed. On unified memory less than it may take, so that a build fits beside it: the
weights, the runtime and one sequence. */ -}}
{{- define "nybble.podMemoryRequest" -}}
{{- $numbers := include "nybble.devices" . | fromJson -}}
{{- $device := include "nybble.device" . | fromJson -}}
{{- if and (ne .Values.device "cpu") $device.unifiedMemory -}}
{{- add (.Values.model.weightBytes | int64) (int64 $numbers.gpuRuntimeBytes) (mul (int64 .Values.model.kvBytesPerToken) (int64 .Values.model.contextTokens)) -}}
{{- else -}}
{{- include "nybble.podMemoryBytes" . -}}
{{- end -}}
{{- end }}

{{- /* A build reads the checkpoint into memory once, for the canaries that the CPU engine answers. */ -}}
{{- define "nybble.buildMemoryBytes" -}}
{{- add (.Values.model.weightBytes | int64) (include "nybble.devices" . | fromJson).hostBytes -}}
{{- end }}

{{- /* Seconds a start may take: what does not depend on the model, and reading the weights. */ -}}
{{- define "nybble.startSeconds" -}}
{{- $startup := .Values.probes.startup -}}
{{- $fixed := $startup.fixedSeconds | int64 -}}
{{- if not $fixed }}{{ $fixed = eq .Values.device "cpu" | ternary 60 900 | int64 }}{{ end -}}
{{- $rate := $startup.readBytesPerSecond | int64 -}}
{{- $perNode := div (.Values.model.weightBytes | int64) (.Values.parallel.numNodes | int64) -}}
{{- add $fixed (div (add $perNode $rate -1) $rate) -}}
{{- end }}

{{- define "nybble.startupFailures" -}}
{{- $period := .Values.probes.startup.periodSeconds | int64 -}}
{{- div (add (include "nybble.startSeconds" . | int64) $period -1) $period -}}
{{- end }}

{{- /* Seconds from the first word of the end to the last: delay, drain, then the shutdown of engine and process. */ -}}
{{- define "nybble.graceSeconds" -}}
{{- $after := eq .Values.engine "trtllm" | ternary 55 25 -}}
{{- add (.Values.drain.delaySeconds | int64) (.Values.drain.timeoutSeconds | int64) (int64 $after) -}}
{{- end }}
