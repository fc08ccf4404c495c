{{- /* Where the checkpoint comes from. */ -}}
{{- define "nybble.checkpointVolume" -}}
{{- $source := .Values.model.source -}}
{{- if eq $source.type "pvc" -}}
- name: checkpoint
  persistentVolumeClaim: {claimName: {{ $source.pvc.claimName }}, readOnly: true}
{{- else if eq $source.type "image" -}}
- name: checkpoint
  image: {reference: {{ $source.image.reference | quote }}, pullPolicy: {{ .Values.image.pullPolicy }}}
{{- else if eq $source.type "path" -}}
- name: checkpoint
  hostPath: {path: {{ $source.path | quote }}, type: Directory}
{{- else if eq $source.type "objectStore" -}}
- name: checkpoint
  emptyDir: {sizeLimit: {{ $source.objectStore.sizeLimit | default (mul 2 (int64 .Values.model.weightBytes)) | quote }}}
{{- end }}
{{- end }}

{{- define "nybble.checkpointMount" -}}
{{- $source := .Values.model.source -}}
{{- if ne $source.type "demo" -}}
- name: checkpoint
  mountPath: /checkpoint
  readOnly: true
{{- if and (eq $source.type "pvc") $source.pvc.subPath }}
  subPath: {{ $source.pvc.subPath }}
{{- else if and (eq $source.type "image") $source.image.subPath }}
  subPath: {{ $source.image.subPath }}
{{- end }}
{{- end }}
{{- end }}

{{- /* Copies the checkpoint out of an object store and compares every file's checksum. */ -}}
{{- define "nybble.fetchContainer" -}}
{{- $store := .Values.model.source.objectStore -}}
- name: fetch
  image: {{ $store.image }}
  args: [copy, --checksum, --transfers=8, --config=/dev/null, {{ printf ":s3:%s" $store.uri | quote }}, /checkpoint]
  env:
    - {name: RCLONE_S3_PROVIDER, value: {{ empty $store.endpoint | ternary "AWS" "Other" }}}
    - {name: RCLONE_S3_ENV_AUTH, value: "true"}
    {{- if $store.endpoint }}
    - {name: RCLONE_S3_ENDPOINT, value: {{ $store.endpoint | quote }}}
    {{- end }}
  envFrom: [{secretRef: {name: {{ $store.secretName }}}}]
  resources:
    requests: {cpu: "1", memory: 512Mi}
    limits: {cpu: "4", memory: 2Gi}
  securityContext:
    allowPrivilegeEscalation: false
    capabilities: {drop: [ALL]}
    privileged: false
    readOnlyRootFilesystem: true
  volumeMounts:
    - {name: checkpoint, mountPath: /checkpoint}
{{- end }}

{{- /* Volumes of a serving pod. */ -}}
{{- define "nybble.volumes" -}}
- name: tmp
  emptyDir: {sizeLimit: 2Gi}
{{- if ne .Values.device "cpu" }}
- name: home
  emptyDir: {sizeLimit: 20Gi}
- name: shm
  emptyDir: {medium: Memory, sizeLimit: 8Gi}
{{- end }}
{{- if .Values.build.enabled }}
- name: engines
  persistentVolumeClaim: {claimName: {{ include "nybble.enginesClaim" . }}, readOnly: true}
{{- else if ne .Values.model.source.type "demo" }}
{{ include "nybble.checkpointVolume" . }}
{{- end }}
{{- if .Values.auth.existingSecret }}
- name: keys
  secret:
    secretName: {{ .Values.auth.existingSecret }}
    items: [{key: {{ .Values.auth.key }}, path: {{ .Values.auth.key }}}]
    defaultMode: 0440
{{- end }}
{{- if gt (int64 .Values.parallel.numNodes) 1 }}
- name: launch
  configMap: {name: {{ include "nybble.name" . }}-launch, defaultMode: 0555}
- name: ssh
  secret: {secretName: {{ .Values.parallel.sshSecret }}, defaultMode: 0440}
{{- end }}
{{- end }}

{{- define "nybble.volumeMounts" -}}
- {name: tmp, mountPath: /tmp}
{{- if ne .Values.device "cpu" }}
- {name: home, mountPath: /home/nybble}
- {name: shm, mountPath: /dev/shm}
{{- end }}
{{- if .Values.build.enabled }}
- {name: engines, mountPath: /engines, readOnly: true}
{{- else }}
{{- with include "nybble.checkpointMount" . }}
{{ . }}
{{- end }}
{{- end }}
{{- if .Values.auth.existingSecret }}
- {name: keys, mountPath: /etc/nybble/keys, readOnly: true}
{{- end }}
{{- if gt (int64 .Values.parallel.numNodes) 1 }}
- {name: launch, mountPath: /etc/nybble/launch, readOnly: true}
- {name: ssh, mountPath: /etc/nybble/ssh, readOnly: true}
{{- end }}
{{- end }}
