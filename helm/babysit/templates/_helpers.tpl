{{/* The name of everything in the release. */}}
{{- define "babysit.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "babysit.runsNamespace" -}}
{{- .Values.runs.namespace | default .Release.Namespace -}}
{{- end -}}

{{/* What tells Pods of one component apart. The name is fixed: the alert rules look for it. */}}
{{- define "babysit.selector" -}}
app.kubernetes.io/name: babysit
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "babysit.labels" -}}
{{ include "babysit.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "babysit.image" -}}
{{- $repository := required "image.repository is empty: name the image that you built from the Dockerfile and pushed, such as --set image.repository=registry.example.org/babysit" .Values.image.repository -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" $repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository (.Values.image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{- define "babysit.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (include "babysit.fullname" .) -}}
{{- end -}}

{{- define "babysit.adminTokenSecret" -}}
{{- .Values.adminToken.secret | default (printf "%s-admin-token" (include "babysit.fullname" .)) -}}
{{- end -}}

{{- define "babysit.databaseSecret" -}}
{{- printf "%s-postgresql" (include "babysit.fullname" .) -}}
{{- end -}}

{{- define "babysit.tlsSecret" -}}
{{- if eq .Values.tls.mode "secret" -}}
{{- required "tls.mode=secret needs tls.secret: a Secret with tls.crt, tls.key and, unless tls.public, ca.crt" .Values.tls.secret -}}
{{- else -}}
{{- .Values.tls.secret | default (printf "%s-tls" (include "babysit.fullname" .)) -}}
{{- end -}}
{{- end -}}

{{- define "babysit.agentUrl" -}}
{{- if .Values.tls.public -}}
{{- if eq .Values.tls.mode "own" -}}
{{- fail "tls.public=true with tls.mode=own: no system trusts the authority that the chart makes; use tls.mode=certManager or secret" -}}
{{- end -}}
{{- required "tls.public=true needs agentUrl: no public authority signs the name of a Service; set it to a name of the certificate that Pods reach, such as wss://babysit.example.org/agent" .Values.agentUrl -}}
{{- else -}}
{{- $port := ternary "" (printf ":%v" (int64 .Values.service.port)) (eq (int64 .Values.service.port) 443) -}}
{{- .Values.agentUrl | default (printf "wss://%s.%s.svc%s/agent" (include "babysit.fullname" .) .Release.Namespace $port) -}}
{{- end -}}
{{- end -}}

{{- define "babysit.agentHost" -}}
{{- (include "babysit.agentUrl" . | urlParse).hostname -}}
{{- end -}}

{{/* The name of a setting's variable. */}}
{{- define "babysit.variable" -}}
BABYSIT_{{ upper . }}
{{- end -}}

{{/* A value as the variable holds it: a number of the values is a float, and 1e+07 is no integer. */}}
{{- define "babysit.text" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) -}}
{{- int64 . | toString -}}
{{- else -}}
{{- toString . -}}
{{- end -}}
{{- end -}}

{{/* How a container reaches the database. */}}
{{- define "babysit.databaseEnv" -}}
{{- if .Values.database.bundled.enabled -}}
- name: POSTGRES_PASSWORD
  valueFrom:
    secretKeyRef:
      name: {{ include "babysit.databaseSecret" . }}
      key: password
- name: BABYSIT_DATABASE_URL
  value: postgresql://babysit:$(POSTGRES_PASSWORD)@{{ include "babysit.databaseSecret" . }}.{{ .Release.Namespace }}.svc:5432/babysit
{{- else -}}
- name: BABYSIT_DATABASE_URL
  valueFrom:
    secretKeyRef:
      name: {{ required "babysit needs PostgreSQL: set database.secret to a Secret whose key `url` is postgresql://USER:PASSWORD@HOST:5432/DATABASE, or, for a trial, database.bundled.enabled=true" .Values.database.secret }}
      key: {{ .Values.database.key }}
{{- end }}
- name: BABYSIT_HOME
  value: /var/lib/babysit/home
{{- end -}}

{{/* What a container of ours may do: nothing. */}}
{{- define "babysit.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- define "babysit.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{/* Space to write to, and the authorities of the database. */}}
{{- define "babysit.volumes" -}}
- name: home
  emptyDir: {}
- name: temporary
  emptyDir: {}
{{- with .Values.database.caSecret }}
- name: database-ca
  secret:
    secretName: {{ . }}
{{- end }}
{{- end -}}

{{- define "babysit.volumeMounts" -}}
- name: home
  mountPath: /var/lib/babysit
- name: temporary
  mountPath: /tmp
{{- if .Values.database.caSecret }}
- name: database-ca
  mountPath: /etc/babysit/database
  readOnly: true
{{- end }}
{{- end -}}
