{{/* The environment of the server: what the chart knows, then what its owner sets. */}}
{{- define "babysit.serverEnv" -}}
- name: POD_NAMESPACE
  valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: POD_IP
  valueFrom: {fieldRef: {fieldPath: status.podIP}}
{{ include "babysit.databaseEnv" . }}
- name: BABYSIT_TOKEN
  valueFrom:
    secretKeyRef:
      name: {{ include "babysit.adminTokenSecret" . }}
      key: {{ .Values.adminToken.key }}
{{- if .Values.nodeMonitor.enabled }}
- name: BABYSIT_NODE_TOKEN
  valueFrom:
    secretKeyRef:
      name: {{ .Values.nodeMonitor.tokenSecret | default (printf "%s-node-monitor" (include "babysit.fullname" .)) }}
      key: {{ .Values.nodeMonitor.tokenKey }}
{{- end }}
{{- range $name, $value := include "babysit.ownSettings" . | fromYaml }}
- name: {{ include "babysit.variable" $name }}
  value: {{ include "babysit.text" $value | quote }}
{{- end }}
{{- range $name, $value := .Values.settings }}
- name: {{ include "babysit.variable" $name }}
  value: {{ include "babysit.text" $value | quote }}
{{- end }}
{{- range $name, $from := .Values.secretSettings }}
- name: {{ include "babysit.variable" $name }}
  valueFrom:
    secretKeyRef:
      name: {{ $from.secret }}
      key: {{ $from.key }}
{{- end }}
{{- with .Values.env }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Settings that follow from the rest of the chart. */}}
{{- define "babysit.ownSettings" -}}
agent_url: {{ include "babysit.agentUrl" . }}
{{- with include "babysit.bundles" . }}
bundles: {{ . | quote }}
{{- end }}
cluster: kubernetes
kubernetes_instance: {{ include "babysit.fullname" . }}
kubernetes_namespace: {{ include "babysit.runsNamespace" . }}
host: {{ .Values.listen | quote }}
port: 8443
pod: $(POD_NAMESPACE)/$(POD_NAME)
tls_certificate: /etc/babysit/tls/tls.crt
tls_key: /etc/babysit/tls/tls.key
{{- if not .Values.tls.public }}
agent_ca: /etc/babysit/tls/ca.crt
ca: /etc/babysit/tls/ca.crt
{{- end }}
{{- if .Values.runs.podTemplate }}
kubernetes_pod_template: /etc/babysit/files/pod-template.yaml
{{- end }}
{{- if .Values.alertsRules }}
alerts_rules: /etc/babysit/files/alerts-rules.yaml
{{- end }}
{{- if .Values.logRules }}
log_rules: /etc/babysit/files/log-rules.yaml
{{- end }}
{{- end -}}

{{/* Where the code of runs is kept; empty: in each server's home. */}}
{{- define "babysit.bundles" -}}
{{- if .Values.bundles.claim -}}
{{- if .Values.bundles.url -}}
{{- fail "bundles.url and bundles.claim are both set: keep one" -}}
{{- end -}}
file:///var/lib/babysit-bundles
{{- else -}}
{{- .Values.bundles.url -}}
{{- end -}}
{{- end -}}
