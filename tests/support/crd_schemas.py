"""Schemas of the custom resources the chart writes, after their public definitions.

Only the fields that the chart uses or could use are listed; an unlisted one fails, as a misspelt one would be
dropped by the API server. Sources: the API references of LeaderWorkerSet (leaderworkerset.x-k8s.io/v1),
Prometheus Operator (monitoring.coreos.com/v1), KEDA (keda.sh/v1alpha1), Gateway API
(gateway.networking.k8s.io/v1) and its inference extension (inference.networking.k8s.io/v1).
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

_STRING: Schema = {"type": "string"}
_DURATION: Schema = {"type": "string", "pattern": r"^([0-9]+(ms|s|m|h))+$"}
_INT_OR_STRING: Schema = {"type": ["integer", "string"]}
_LABELS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
_PORT: Schema = {"type": "integer", "minimum": 1, "maximum": 65535}


def _object(required: str = "", **properties: Schema) -> Schema:
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
        "required": required.split(),
    }


def _list(items: Schema, **more: Any) -> Schema:
    return {"type": "array", "items": items, **more}


def _enum(*values: str) -> Schema:
    return {"enum": list(values)}


def _resource(api_version: str, kind: str, spec: Schema) -> Schema:
    metadata = _object("name", name=_STRING, namespace=_STRING, labels=_LABELS, annotations=_LABELS)
    return _object(
        "apiVersion kind metadata spec",
        apiVersion={"const": api_version},
        kind={"const": kind},
        metadata=metadata,
        spec=spec,
    )


# The pods inside are checked as pods, against Kubernetes' own schema.
_POD_TEMPLATE = _object(
    "spec", metadata=_object(labels=_LABELS, annotations=_LABELS), spec={"type": "object"}
)

LEADER_WORKER_SET = _resource(
    "leaderworkerset.x-k8s.io/v1",
    "LeaderWorkerSet",
    _object(
        "leaderWorkerTemplate",
        replicas={"type": "integer", "minimum": 0},
        leaderWorkerTemplate=_object(
            "workerTemplate",
            leaderTemplate=_POD_TEMPLATE,
            workerTemplate=_POD_TEMPLATE,
            size={"type": "integer", "minimum": 1},
            restartPolicy=_enum("Default", "RecreateGroupOnPodRestart", "None"),
            subGroupPolicy=_object(subGroupSize={"type": "integer", "minimum": 1}),
        ),
        rolloutStrategy=_object(
            "type",
            type=_enum("RollingUpdate"),
            rollingUpdateConfiguration=_object(
                maxUnavailable=_INT_OR_STRING, maxSurge=_INT_OR_STRING, partition={"type": "integer"}
            ),
        ),
        startupPolicy=_enum("LeaderCreated", "LeaderReady"),
        networkConfig=_object("subdomainPolicy", subdomainPolicy=_enum("Shared", "UniquePerReplica")),
    ),
)

_SELECTOR = _object(
    matchLabels=_LABELS,
    matchExpressions=_list(_object("key operator", key=_STRING, operator=_STRING, values=_list(_STRING))),
)

SERVICE_MONITOR = _resource(
    "monitoring.coreos.com/v1",
    "ServiceMonitor",
    _object(
        "selector endpoints",
        jobLabel=_STRING,
        selector=_SELECTOR,
        namespaceSelector=_object(any={"type": "boolean"}, matchNames=_list(_STRING)),
        endpoints=_list(
            _object(
                port=_STRING,
                path=_STRING,
                scheme=_enum("http", "https"),
                interval=_DURATION,
                scrapeTimeout=_DURATION,
                honorLabels={"type": "boolean"},
            ),
            minItems=1,
        ),
    ),
)

PROMETHEUS_RULE = _resource(
    "monitoring.coreos.com/v1",
    "PrometheusRule",
    _object(
        groups=_list(
            _object(
                "name rules",
                name=_STRING,
                interval=_DURATION,
                rules=_list(
                    {
                        **_object(
                            "expr",
                            alert=_STRING,
                            record=_STRING,
                            expr=_INT_OR_STRING,
                            labels=_LABELS,
                            annotations=_LABELS,
                            **{"for": _DURATION, "keep_firing_for": _DURATION},
                        ),
                        "oneOf": [{"required": ["alert"]}, {"required": ["record"]}],
                    }
                ),
            )
        )
    ),
)

_SCALING_POLICIES = _object(
    stabilizationWindowSeconds={"type": "integer", "minimum": 0, "maximum": 3600},
    selectPolicy=_enum("Max", "Min", "Disabled"),
    policies=_list(
        _object(
            "type value periodSeconds",
            type=_enum("Pods", "Percent"),
            value={"type": "integer", "minimum": 1},
            periodSeconds={"type": "integer", "minimum": 1, "maximum": 1800},
        )
    ),
)

SCALED_OBJECT = _resource(
    "keda.sh/v1alpha1",
    "ScaledObject",
    _object(
        "scaleTargetRef triggers",
        scaleTargetRef=_object("name", apiVersion=_STRING, kind=_STRING, name=_STRING),
        pollingInterval={"type": "integer", "minimum": 1},
        cooldownPeriod={"type": "integer", "minimum": 0},
        minReplicaCount={"type": "integer", "minimum": 0},
        maxReplicaCount={"type": "integer", "minimum": 1},
        advanced=_object(
            restoreToOriginalReplicaCount={"type": "boolean"},
            horizontalPodAutoscalerConfig=_object(
                name=_STRING, behavior=_object(scaleDown=_SCALING_POLICIES, scaleUp=_SCALING_POLICIES)
            ),
        ),
        triggers=_list(
            _object(
                "type metadata",
                type=_STRING,
                name=_STRING,
                metricType=_enum("AverageValue", "Value", "Utilization"),
                # All of a trigger's metadata are strings, numbers too.
                metadata=_object(
                    "serverAddress query threshold",
                    serverAddress=_STRING,
                    query=_STRING,
                    threshold=_STRING,
                    activationThreshold=_STRING,
                    namespace=_STRING,
                ),
            ),
            minItems=1,
        ),
    ),
)

_BACKEND = _object(
    "name",
    group=_STRING,
    kind=_STRING,
    name=_STRING,
    namespace=_STRING,
    port=_PORT,
    weight={"type": "integer"},
)

HTTP_ROUTE = _resource(
    "gateway.networking.k8s.io/v1",
    "HTTPRoute",
    _object(
        parentRefs=_list(
            _object(
                "name",
                group=_STRING,
                kind=_STRING,
                name=_STRING,
                namespace=_STRING,
                sectionName=_STRING,
                port=_PORT,
            )
        ),
        hostnames=_list(_STRING),
        rules=_list(
            _object(
                matches=_list(
                    _object(
                        path=_object(
                            "type value",
                            type=_enum("Exact", "PathPrefix", "RegularExpression"),
                            value=_STRING,
                        )
                    )
                ),
                backendRefs=_list(_BACKEND),
                timeouts=_object(request=_DURATION, backendRequest=_DURATION),
            )
        ),
    ),
)

INFERENCE_POOL = _resource(
    "inference.networking.k8s.io/v1",
    "InferencePool",
    _object(
        "selector targetPorts endpointPickerRef",
        selector=_object("matchLabels", matchLabels=_LABELS),
        targetPorts=_list(_object("number", number=_PORT), minItems=1),
        endpointPickerRef=_object(
            "name",
            group=_STRING,
            kind=_STRING,
            name=_STRING,
            port=_object("number", number=_PORT),
            failureMode=_enum("FailOpen", "FailClose"),
        ),
    ),
)

CRD_SCHEMAS = {
    "LeaderWorkerSet": LEADER_WORKER_SET,
    "ServiceMonitor": SERVICE_MONITOR,
    "PrometheusRule": PROMETHEUS_RULE,
    "ScaledObject": SCALED_OBJECT,
    "HTTPRoute": HTTP_ROUTE,
    "InferencePool": INFERENCE_POOL,
}
