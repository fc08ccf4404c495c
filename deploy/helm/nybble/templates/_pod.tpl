{{- define "nybble.environment" -}}
- {name: NYBBLE_SERVED_MODEL_NAMES, value: {{ join "," .Values.model.names | quote }}}
- {name: NYBBLE_MAX_MODEL_LEN, value: {{ .Values.model.contextTokens | int64 | quote }}}
- {name: NYBBLE_HOST, value: "0.0.0.0"}
- {name: NYBBLE_PORT, value: "8000"}
- {name: NYBBLE_HEALTH_HOST, value: "0.0.0.0"}
- {name: NYBBLE_HEALTH_PORT, value: "8001"}
- {name: NYBBLE_METRICS_WITHOUT_KEY, value: "true"} # the network policy says who reaches them
- {name: NYBBLE_DRAIN_TIMEOUT_SECONDS, value: {{ .Values.drain.timeoutSeconds | quote }}}
{{- if eq .Values.device "cpu" }}
- {name: NYBBLE_KV_CACHE_MEMORY_BYTES, value: {{ include "nybble.kvCacheBytes" . | quote }}}
{{- else }}
- {name: NYBBLE_TENSOR_PARALLEL_SIZE, value: {{ .Values.parallel.tensor | quote }}}
- {name: NYBBLE_PIPELINE_PARALLEL_SIZE, value: {{ .Values.parallel.pipeline | quote }}}
- {name: NYBBLE_GPUS_PER_NODE, value: {{ include "nybble.gpusPerPod" . | quote }}}
{{- end }}
{{- if .Values.auth.existingSecret }}
- {name: NYBBLE_API_KEY_FILE, value: {{ printf "/etc/nybble/keys/%s" .Values.auth.key }}}
{{- else }}
- {name: NYBBLE_INSECURE_NO_AUTH, value: "true"}
{{- end }}
{{- with .Values.otlpEndpoint }}
- {name: NYBBLE_OTLP_ENDPOINT, value: {{ . | quote }}}
{{- end }}
{{- range $name, $value := .Values.settings }}
- {name: NYBBLE_{{ $name | snakecase | upper }}, value: {{ kindIs "float64" $value | ternary (toJson $value) (toString $value) | quote }}}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "nybble.resources" -}}
{{- if .Values.resources.overrides }}{{ toYaml .Values.resources.overrides }}{{ else -}}
requests:
  cpu: {{ .Values.resources.cpu | quote }}
  memory: {{ include "nybble.podMemoryRequest" . | quote }}
limits:
  cpu: {{ .Values.resources.cpu | quote }}
  memory: {{ include "nybble.podMemoryBytes" . | quote }}
  {{- if ne .Values.device "cpu" }}
  {{ .Values.gpu.resourceName }}: {{ include "nybble.gpusPerPod" . }}
  {{- end }}
{{- end }}
{{- end }}

{{- /* Where a pod may run: nodes whose GPU has the compute capability of the device. */ -}}
{{- define "nybble.nodeAffinity" -}}
{{- $device := include "nybble.device" . | fromJson -}}
{{- if and .Values.gpu.selectByCapability $device.sm -}}
requiredDuringSchedulingIgnoredDuringExecution:
  nodeSelectorTerms:
    - matchExpressions:
        - {key: nvidia.com/gpu.compute.major, operator: In, values: [{{ div (int64 $device.sm) 10 | quote }}]}
        - {key: nvidia.com/gpu.compute.minor, operator: In, values: [{{ mod (int64 $device.sm) 10 | quote }}]}
{{- end }}
{{- end }}

{{- define "nybble.placement" -}}
{{- with .Values.nodeSelector }}
nodeSelector: {{ toJson . }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{ toJson . }}
{{- end }}
{{- $nodeAffinity := include "nybble.nodeAffinity" . | fromYaml }}
{{- $affinity := deepCopy .Values.affinity }}
{{- if $nodeAffinity }}{{ $affinity = mustMerge $affinity (dict "nodeAffinity" $nodeAffinity) }}{{ end }}
{{- with $affinity }}
affinity: {{ toJson . }}
{{- end }}
{{- with .Values.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end }}

{{- /* A pod that serves; with numNodes above 1 the leader of a group. */ -}}
{{- define "nybble.podSpec" -}}
{{- $several := gt (int64 .Values.parallel.numNodes) 1 -}}
serviceAccountName: {{ include "nybble.serviceAccount" . }}
automountServiceAccountToken: false
enableServiceLinks: false
terminationGracePeriodSeconds: {{ include "nybble.graceSeconds" . }}
securityContext: {{ include "nybble.podSecurityContext" . | fromYaml | toJson }}
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{ toJson . }}
{{- end }}
{{- include "nybble.placement" . }}
{{- if and .Values.topologySpread.enabled (not $several) }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: {{ .Values.topologySpread.topologyKey }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector: {matchLabels: {{ include "nybble.selector" . | fromYaml | toJson }}}
{{- end }}
{{- if .Values.build.enabled }}
initContainers:
  # An engine folder is whole or absent, so its manifest says that the build is done.
  - name: wait-for-build
    image: {{ include "nybble.image" . }}
    imagePullPolicy: {{ .Values.image.pullPolicy }}
    command: [sh, -c, 'until test -f "$0"; do sleep 5; done', {{ include "nybble.directory" . }}/build_manifest.json]
    resources: {requests: {cpu: 10m, memory: 64Mi}, limits: {cpu: 100m, memory: 64Mi}}
    securityContext: {{ include "nybble.securityContext" . | fromYaml | toJson }}
    volumeMounts: [{name: engines, mountPath: /engines, readOnly: true}]
{{- else if eq .Values.model.source.type "objectStore" }}
initContainers:
{{ include "nybble.fetchContainer" . | indent 2 }}
{{- end }}
containers:
  - name: nybble
    image: {{ include "nybble.image" . }}
    imagePullPolicy: {{ .Values.image.pullPolicy }}
    {{- if $several }}
    command: [/usr/bin/tini, --, /etc/nybble/launch/leader.sh]
    {{- end }}
    args: {{ concat (list "serve" (include "nybble.directory" .) (printf "--engine=%s" .Values.engine)) .Values.extraArgs | toJson }}
    env:
{{ include "nybble.environment" . | indent 6 }}
    ports:
      - {name: http, containerPort: 8000}
      - {name: health, containerPort: 8001}
    startupProbe:
      httpGet: {path: /health/startup, port: health}
      periodSeconds: {{ .Values.probes.startup.periodSeconds }}
      timeoutSeconds: 5
      failureThreshold: {{ include "nybble.startupFailures" . }}
    readinessProbe:
      httpGet: {path: /health/ready, port: health}
{{ toYaml .Values.probes.readiness | indent 6 }}
    livenessProbe:
      httpGet: {path: /health/live, port: health}
{{ toYaml .Values.probes.liveness | indent 6 }}
    lifecycle:
      preStop:
        exec:
          {{- if $several }}
          command: [/etc/nybble/launch/stop.sh, {{ .Values.drain.delaySeconds | quote }}]
          {{- else }}
          command: [sleep, {{ .Values.drain.delaySeconds | quote }}]
          {{- end }}
    resources:
{{ include "nybble.resources" . | indent 6 }}
    securityContext: {{ include "nybble.securityContext" . | fromYaml | toJson }}
    volumeMounts:
{{ include "nybble.volumeMounts" . | indent 6 }}
volumes:
{{ include "nybble.volumes" . | indent 2 }}
{{- end }}

{{- /* The other pods of a group: sshd, by which mpirun starts their ranks. */ -}}
{{- define "nybble.workerPodSpec" -}}
serviceAccountName: {{ include "nybble.serviceAccount" . }}
automountServiceAccountToken: false
enableServiceLinks: false
terminationGracePeriodSeconds: {{ include "nybble.graceSeconds" . }}
securityContext: {{ include "nybble.podSecurityContext" . | fromYaml | toJson }}
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{ toJson . }}
{{- end }}
{{- include "nybble.placement" . }}
containers:
  - name: worker
    image: {{ include "nybble.image" . }}
    imagePullPolicy: {{ .Values.image.pullPolicy }}
    command: [/usr/bin/tini, --, /etc/nybble/launch/worker.sh]
    ports:
      - {name: ssh, containerPort: 2222}
    readinessProbe:
      tcpSocket: {port: ssh}
      periodSeconds: 5
    lifecycle:
      preStop:
        # Until the leader has drained; its group ends together.
        exec: {command: [sleep, {{ add (.Values.drain.delaySeconds | int64) (.Values.drain.timeoutSeconds | int64) | quote }}]}
    resources:
{{ include "nybble.resources" . | indent 6 }}
    securityContext: {{ include "nybble.securityContext" . | fromYaml | toJson }}
    volumeMounts:
{{ include "nybble.volumeMounts" . | indent 6 }}
volumes:
{{ include "nybble.volumes" . | indent 2 }}
{{- end }}

{{- define "nybble.podMetadata" -}}
labels: {{ mustMerge (include "nybble.selector" . | fromYaml) (include "nybble.labels" . | fromYaml) .Values.podLabels | toJson }}
annotations: {{ mustMerge (dict "kubectl.kubernetes.io/default-container" "nybble" "nybble/kv-cache-bytes" (include "nybble.kvCacheBytes" .) "nybble/start-seconds" (include "nybble.startSeconds" .)) .Values.podAnnotations | toJson }}
{{- end }}
