//! A Pod with every supported field.

/// Every supported field, each with a value other than its default.
pub(super) const FULL: &str = r#"apiVersion: v1
kind: Pod
metadata:
  name: full
  generateName: full-
  namespace: prod
  labels: {app.kubernetes.io/name: "x"}
  annotations: {example.com/note: "hello", magikvm.dev/vcpus: "3"}
  creationTimestamp: null
  uid: 12345678-0000
spec:
  restartPolicy: OnFailure
  terminationGracePeriodSeconds: 5
  activeDeadlineSeconds: 600
  hostname: box
  hostnameOverride: box.example.com
  setHostnameAsFQDN: false
  hostUsers: true
  runtimeClassName: pod-microvm-containers
  shareProcessNamespace: true
  hostNetwork: false
  os: {name: linux}
  imagePullSecrets: [{name: login}]
  subdomain: shops
  dnsPolicy: None
  dnsConfig:
    nameservers: [192.0.2.53]
    searches: [shops.example]
    options: [{name: ndots, value: "2"}]
  hostAliases: [{ip: 192.0.2.1, hostnames: [db, db.example]}]
  resources:
    limits: {cpu: "4", memory: 512Mi, ephemeral-storage: 2Gi}
    requests: {cpu: "3", memory: 256Mi}
  securityContext:
    runAsUser: 1000
    runAsGroup: 1001
    runAsNonRoot: true
    fsGroup: 2000
    fsGroupChangePolicy: OnRootMismatch
    supplementalGroups: [3000, 2000]
    supplementalGroupsPolicy: Strict
    sysctls: [{name: net.core.somaxconn, value: "512"}, {name: kernel/shmmax, value: "1"}]
    seccompProfile: {type: Unconfined}
    appArmorProfile: {type: Unconfined}
    seLinuxOptions: {}
  volumes:
  - {name: host, hostPath: {path: /srv/data, type: DirectoryOrCreate}}
  - {name: cache, emptyDir: {medium: Memory, sizeLimit: 8Mi}}
  - {name: conf, configMap: {name: app, defaultMode: 0440, items: [{key: a.txt, path: x/y, mode: 256}, {key: b, path: b}]}}
  - {name: keys, secret: {secretName: keys, defaultMode: 0o400, items: [{key: k, path: k1}, {key: k, path: k2, mode: 0444}]}}
  - {name: no-conf, configMap: {name: gone, optional: true}}
  - {name: no-keys, secret: {secretName: gone, optional: true}}
  - name: all
    projected:
      defaultMode: 0440
      sources:
      - {configMap: {name: app, items: [{key: a.txt, path: c/a, mode: 0400}]}}
      - {configMap: {name: gone, optional: true}}
      - {secret: {name: keys, items: [{key: k, path: s/k, mode: 0400}]}}
      - {secret: {name: gone, optional: true}}
      - downwardAPI:
          items:
          - {path: labels, mode: 0400, fieldRef: {apiVersion: v1, fieldPath: metadata.labels}}
          - {path: cpu, resourceFieldRef: {containerName: one, resource: limits.cpu, divisor: 1m}}
  - name: about
    downwardAPI:
      defaultMode: 0440
      items:
      - {path: a/note, mode: 0400, fieldRef: {fieldPath: "metadata.annotations['example.com/note']"}}
      - {path: uid, fieldRef: {fieldPath: metadata.uid}}
      - {path: memory, resourceFieldRef: {containerName: one, resource: requests.memory, divisor: 1Mi}}
  - {name: tools, image: {reference: "tools:1", pullPolicy: Never}}
  - {name: data, persistentVolumeClaim: {claimName: data, readOnly: true}}
  - {name: mine, ephemeral: {volumeClaimTemplate: {metadata: {labels: {a: b}}, spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}}}}
  initContainers:
  - name: prepare
    image: busybox
    restartPolicy: OnFailure
    restartPolicyRules: [{action: Restart, exitCodes: {operator: In, values: [42]}}]
    resources: {limits: {ephemeral-storage: 1Gi, memory: 16Mi}}
  - name: proxy
    image: busybox
    restartPolicy: Always
    startupProbe: {exec: {command: [test, -e, /started]}, failureThreshold: 30}
    resources: {limits: {memory: 32Mi}}
  containers:
  - name: one
    image: registry.example:5000/a/b:1.2
    imagePullPolicy: Never
    command: ["/bin/sh", "-c"]
    args: ["echo $(GREETING)"]
    workingDir: /srv
    env:
    - {name: GREETING, value: "hi"}
    - {name: A, valueFrom: {configMapKeyRef: {name: app, key: b}}}
    - {name: K, valueFrom: {secretKeyRef: {name: keys, key: k}}}
    - {name: NS, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
    - {name: NO_A, valueFrom: {configMapKeyRef: {name: gone, key: b, optional: true}}}
    - {name: NO_K, valueFrom: {secretKeyRef: {name: keys, key: gone, optional: true}}}
    - {name: CPU, valueFrom: {resourceFieldRef: {containerName: two, resource: limits.cpu, divisor: 1m}}}
    - {name: OF_FILE, valueFrom: {fileKeyRef: {volumeName: cache, path: a/env, key: KEY, optional: true}}}
    - {name: DISK, valueFrom: {resourceFieldRef: {resource: requests.ephemeral-storage}}}
    envFrom:
    - {prefix: P_, configMapRef: {name: app}}
    - {secretRef: {name: keys}}
    - {configMapRef: {name: gone, optional: true}}
    - {secretRef: {name: gone, optional: true}}
    volumeMounts:
    - {name: host, mountPath: /data, subPath: a/./b, readOnly: true}
    - {name: cache, mountPath: /cache, subPathExpr: "$(GREETING)/x"}
    - {name: conf, mountPath: /conf}
    ports:
    - {name: http, containerPort: 8080, protocol: UDP, hostPort: 18080, hostIP: 127.0.0.1}
    resources:
      limits: {cpu: 1500m, memory: 64Mi, ephemeral-storage: 512Mi, hugepages-2Mi: "0", hugepages-1Gi: "0"}
      requests: {cpu: "1", memory: 32Mi, ephemeral-storage: 1Mi, hugepages-2Mi: "0", hugepages-1Gi: "0"}
    tty: true
    stdin: true
    stdinOnce: true
    securityContext:
      runAsUser: 7
      runAsGroup: 8
      runAsNonRoot: true
      readOnlyRootFilesystem: true
      allowPrivilegeEscalation: false
      procMount: Unmasked
      seccompProfile: {type: Localhost, localhostProfile: profiles/audit.json}
      appArmorProfile: {type: RuntimeDefault, localhostProfile: ""}
      seLinuxOptions: {}
      capabilities: {add: [NET_ADMIN, CAP_SYS_TIME, net_admin], drop: [ALL]}
    livenessProbe:
      httpGet: {path: /live, port: http, scheme: HTTPS, host: 127.0.0.1, httpHeaders: [{name: Host, value: shop.example}]}
      initialDelaySeconds: 1
      periodSeconds: 2
      timeoutSeconds: 3
      failureThreshold: 4
      terminationGracePeriodSeconds: 6
    readinessProbe: {tcpSocket: {port: 8080}, successThreshold: 2}
    startupProbe: {grpc: {port: 9000, service: shop}}
    lifecycle:
      postStart: {httpGet: {path: /begin, port: http, scheme: HTTPS, host: 127.0.0.1, httpHeaders: [{name: A, value: b}]}}
      preStop: {sleep: {seconds: 2}}
      stopSignal: SIGUSR1
    restartPolicy: Never
    restartPolicyRules: [{action: Restart, exitCodes: {operator: NotIn, values: [0, 1]}}]
    terminationMessagePath: /tmp/last
    terminationMessagePolicy: FallbackToLogsOnError
  - name: two
    image: busybox
    livenessProbe: {exec: {command: [/bin/true, "$(GREETING)"]}, successThreshold: 1}
    lifecycle: {postStart: {exec: {command: [/bin/true, "$(GREETING)"]}}}
  - name: three
    image: busybox
    livenessProbe: {tcpSocket: {port: 8080, host: "::1"}}
    lifecycle: {postStart: {sleep: {seconds: 1}}}
    securityContext: {privileged: true}
  - name: four
    image: busybox
    livenessProbe: {grpc: {port: 9000, service: shop}}
"#;

/// The objects in the same file that [`FULL`] uses.
pub(super) const OBJECTS: &str = r#"
---
apiVersion: v1
kind: Secret
metadata: {name: keys, namespace: prod, labels: {a: b}}
type: Opaque
data: {k: "b3ZlcndyaXR0ZW4=", other: "b3RoZXI="}
stringData: {k: "top $(secret)"}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: app}
immutable: true
data: {a.txt: "hello\n"}
binaryData: {b: "QkJCQg=="}
---
apiVersion: v1
kind: Secret
metadata: {name: login}
type: kubernetes.io/dockercfg
stringData: {.dockercfg: '{"r.example": {"username": "a", "password": "b"}}'}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
"#;
