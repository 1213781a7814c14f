{{- /*
The parts of a pod with tlsward: "tlsward.container", "tlsward.volumes", and for a pod's
initContainers "tlsward.sidecar", which is the container with what makes it a native sidecar. A chart
that depends on this one includes them with the values of the dependency:

  initContainers:
    {{- include "tlsward.sidecar" (index .Subcharts "tlsward") | nindent 8 }}
  volumes:
    {{- include "tlsward.volumes" (index .Subcharts "tlsward") | nindent 8 }}
*/}}

{{- define "tlsward.container" -}}
- name: tlsward
  image: {{ include "tlsward.image" . }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  {{- if eq .Values.mode "sidecar" }}
  # Makes it a sidecar: it goes on beside the containers, and ends after them.
  restartPolicy: Always
  {{- end }}
  ports:
    - name: tlsward-public
      containerPort: {{ .Values.publicPort }}
    {{- if ne .Values.mode "sidecar" }}
    {{- range $name, $port := .Values.ports }}
    - name: {{ $name }}
      containerPort: {{ $port }}
    {{- end }}
    {{- end }}
  {{- if eq .Values.mode "sidecar" }}
  # Nothing after it in the pod starts before this answers: five minutes for certificates to appear,
  # then tlsward (never the application) is started anew.
  startupProbe:
    httpGet: {path: /readyz, port: tlsward-public}
    periodSeconds: 1
    failureThreshold: 300
  {{- end }}
  livenessProbe:
    httpGet: {path: /livez, port: tlsward-public}
    periodSeconds: 10
    timeoutSeconds: 3
  readinessProbe:
    httpGet: {path: /readyz, port: tlsward-public}
    periodSeconds: 5
    timeoutSeconds: 3
  resources:
    {{- toYaml .Values.resources | nindent 4 }}
  securityContext:
    runAsNonRoot: true
    runAsUser: 65532
    runAsGroup: 65532
    allowPrivilegeEscalation: false
    readOnlyRootFilesystem: true
    capabilities:
      drop: [ALL]
    seccompProfile:
      type: RuntimeDefault
  volumeMounts:
    # The directory, not the file by subPath: that would never change.
    - name: tlsward-config
      mountPath: /etc/tlsward
      readOnly: true
    {{- if .Values.kubernetesApi.enabled }}
    - name: kubernetes-api
      mountPath: /var/run/secrets/kubernetes.io/serviceaccount
      readOnly: true
    {{- end }}
    {{- range .Values.secretMounts }}
    - name: secret-{{ . }}
      mountPath: /secrets/{{ . }}
      readOnly: true
    {{- end }}
{{- end }}

{{- define "tlsward.sidecar" -}}
{{- if ne .Values.mode "sidecar" }}
{{- fail "tlsward.sidecar: set tlsward's value `mode` to sidecar" }}
{{- end }}
{{- include "tlsward.container" . }}
{{- end }}

{{- define "tlsward.volumes" -}}
- name: tlsward-config
  configMap:
    name: {{ include "tlsward.configMapName" . }}
{{- if .Values.kubernetesApi.enabled }}
- name: kubernetes-api
  projected:
    defaultMode: 0440
    sources:
      - serviceAccountToken: {path: token, expirationSeconds: 3600}
      - configMap:
          name: kube-root-ca.crt
          items: [{key: ca.crt, path: ca.crt}]
      - downwardAPI:
          items: [{path: namespace, fieldRef: {fieldPath: metadata.namespace}}]
{{- end }}
{{- range .Values.secretMounts }}
- name: secret-{{ . }}
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- end }}
