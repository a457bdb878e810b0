"""One valid request of every method: what the attacks begin from."""

# mypy: disable-error-code="arg-type, list-item"
# Why: messages are built from dicts and enum names, which the stubs do not know.

from __future__ import annotations

import time
from typing import Final
from uuid import uuid4

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from twinmesh.inference.v1 import inference_pb2 as inference
from twinmesh.ingestion.v1 import ingestion_pb2 as ingestion
from twinmesh.mesh.v1 import mesh_pb2 as mesh
from twinmesh.statesync.v1 import statesync_pb2 as statesync
from twinmesh.storage.v1 import storage_pb2 as storage
from twinmesh.training.v1 import training_pb2 as training
from twinmesh.type.v1 import (
    alarm_pb2,
    condition_pb2,
    entry_pb2,
    event_pb2,
    observation_pb2,
    prediction_pb2,
    replica_pb2,
    twin_pb2,
)

TWIN: Final = "P1"
MINUTE: Final = Duration(seconds=60)


def _us(seconds_ago: float = 0.0) -> int:
    return int((time.time() - seconds_ago) * 1e6)


def _at(seconds_ago: float = 0.0) -> Timestamp:
    return Timestamp(seconds=_us(seconds_ago) // 1_000_000)


def batch_of(twin_id: str) -> observation_pb2.ObservationBatch:
    """Return the rows of `batch`, of another twin."""
    made = batch()
    for series in made.series:
        series.twin_id = twin_id
    return made


def batch() -> observation_pb2.ObservationBatch:
    """Return two rows of each section."""
    times = [_us(20), _us(10)]

    def columns(handle: int) -> dict[str, list[int]]:
        return {"series": [handle, handle], "time_unix_us": times}

    return observation_pb2.ObservationBatch(
        series=[
            observation_pb2.SeriesKey(twin_id=TWIN, channel=channel, unit="degF" if channel == "temp" else "")
            for channel in ("temp", "stage", "running", "label", "doc")
        ],
        doubles=observation_pb2.DoubleSection(**columns(0), quality=b"\1\2", value=[100.0, 101.5]),
        int64s=observation_pb2.Int64Section(**columns(1), value=[1, 2]),
        bools=observation_pb2.BoolSection(**columns(2), value=b"\0\1"),
        texts=observation_pb2.TextSection(**columns(3), end_offset=[1, 3], heap="aü".encode()),
        jsons=observation_pb2.TextSection(**columns(4), end_offset=[2, 9], heap=b'{}{"a":1}'),
    )


def twin_type(name: str = "") -> twin_pb2.TwinType:
    """Return a type with a channel that uses every field."""
    return twin_pb2.TwinType(
        twin_type_id=name or f"t-{uuid4().hex[:12]}",
        version=1,
        channels=[
            twin_pb2.ChannelSpec(
                name="level", kind="CHANNEL_KIND_GAUGE", unit="m", min_value=0.0, max_value=9.0, max_rate_per_s=1.0,
                expected_interval=MINUTE, stuck_after=Duration(seconds=3_600), spike_threshold=3.0, tolerance=0.1,
                controllable=True, set_command="set_level", upper_limit=8.0, deadband=0.01, max_silence=MINUTE,
                disabled_stages=["PIPELINE_STAGE_SPIKE"], retention_class="raw",
            )
        ],
        properties=[
            twin_pb2.PropertySpec(name="serial"),
            twin_pb2.PropertySpec(
                name="volume", kind="VALUE_KIND_NUMBER", unit="m3", min_value=0.0, max_value=9.0,
                allowed_values=[value(1), value(2)], default_value=value(1),
            ),
        ],
        commands=[
            twin_pb2.CommandSpec(
                name="set_level", required_args=["value"],
                args=[twin_pb2.ArgumentSpec(name="value", kind="VALUE_KIND_NUMBER", unit="m", max_value=9.0)],
            )
        ],
        relationships=[twin_pb2.RelationshipSpec(name="feeds", target_twin_type_id="pump", max_count=1)],
        geometry=twin_pb2.Geometry(
            uri="https://example.org/tank.glb", frame="EPSG:4978",
            pose=twin_pb2.Pose(translation=[1, 2, 3], rotation=[0, 0, 0, 1]),
        ),
        rules=rules(),
    )  # fmt: skip


def rules() -> list[alarm_pb2.AlarmRule]:
    """Return a rule of every kind, with every field."""
    common = {"severity": 500, "description": "d", "message": "{value}", "off_delay": MINUTE}
    threshold = alarm_pb2.ThresholdCondition(
        channel="level", low_low=0.1, low=0.2, high=8.0, high_high=8.5, hysteresis=0.1, outer_severity=900, unit="cm"
    )
    prediction = alarm_pb2.PredictionCondition(
        channel="level", low=0.1, high=8.0, quantile=0.9, within=MINUTE, model_id="m", hysteresis=0.1, unit="m"
    )
    rate = alarm_pb2.RateCondition(
        channel="level", max_rise_per_s=1.0, max_fall_per_s=1.0, window=MINUTE, hysteresis_per_s=0.1, unit="m"
    )
    return [
        alarm_pb2.AlarmRule(name="high", threshold=threshold, on_delay=MINUTE, **common),
        alarm_pb2.AlarmRule(name="gone", absence={"channel": "level", "after": MINUTE}, **common),
        alarm_pb2.AlarmRule(name="surge", rate=rate, **common),
        alarm_pb2.AlarmRule(name="stuck", not_converging={"channel": "level", "after": MINUTE}, **common),
        alarm_pb2.AlarmRule(name="soon", prediction=prediction, **common),
        alarm_pb2.AlarmRule(name="odd", expression="reported.level > 1.0", **common),
    ]


def twin() -> twin_pb2.Twin:
    """Return a new twin of the world's type."""
    return twin_pb2.Twin(
        twin_id=f"x-{uuid4().hex[:12]}",
        twin_type_id="pump",
        twin_type_version=1,
        time_zone="Europe/Berlin",
        attributes={"site": "Berlin"},
        relationships=[twin_pb2.Relationship(name="feeds", target_twin_id=TWIN)],
    )


def prediction() -> prediction_pb2.Prediction:
    """Return two steps of three quantiles."""
    return prediction_pb2.Prediction(
        channel="temp", model_id="m-forecast", model_version=1, at=_at(), input_offset=1,
        valid_until=_at(-3_600), step_us=900_000_000, quantile_levels=[0.1, 0.5, 0.9], values=[1, 2, 3, 4, 5, 6],
        unit="Cel",
    )  # fmt: skip


def spec(model_id: str = "m-fuzz") -> training.TrainingSpec:
    """Return a small run."""
    return training.TrainingSpec(
        model_id=model_id, task="MODEL_TASK_FORECAST", twin_ids=[TWIN], target="temp", inputs=["load", "stage"],
        step=Duration(seconds=900), context_steps=24, horizon_steps=8, quantile_levels=[0.1, 0.5, 0.9],
        start_time=_at(20 * 86_400), end_time=_at(), holdout=Duration(seconds=4 * 86_400),
        season=Duration(seconds=86_400), families=["MODEL_FAMILY_RIDGE"], time_budget=Duration(seconds=2), seed=1,
        origins=20, no_promotion=True,
    )  # fmt: skip


def value(number: float) -> observation_pb2.Value:
    """Return a number as a value."""
    return observation_pb2.Value(double_value=number)


def stage(number: int) -> observation_pb2.Value:
    """Return a whole number as a value."""
    return observation_pb2.Value(int64_value=number)


def control_entries() -> list[entry_pb2.ControlEntry]:
    """Return one control entry of every action."""
    made = twin()
    return [
        entry_pb2.ControlEntry(principal="x", create_twin_type=entry_pb2.CreateTwinTypeEntry(twin_type=twin_type())),
        entry_pb2.ControlEntry(create_twin=entry_pb2.CreateTwinEntry(twin=made, if_absent=True)),
        entry_pb2.ControlEntry(create_twins=entry_pb2.CreateTwinsEntry(twins=[twin(), twin()], if_absent=True)),
        entry_pb2.ControlEntry(
            update_twin=entry_pb2.UpdateTwinEntry(
                twin=twin_pb2.Twin(twin_id=TWIN, attributes={"site": "x"}), update_mask=["attributes.site"]
            )
        ),
        entry_pb2.ControlEntry(
            migrate_twins=entry_pb2.MigrateTwinsEntry(
                twin_type_id="pump",
                to_version=1,
                twin_ids=[TWIN],
                from_version=1,
                channel_units=[entry_pb2.UnitChange(name="temp", from_unit="K", scale=1.0, offset=-273.15)],
            )
        ),
        entry_pb2.ControlEntry(delete_twin=entry_pb2.DeleteTwinEntry(twin_id="P9")),
        entry_pb2.ControlEntry(
            set_desired=entry_pb2.SetDesiredEntry(
                twin_id=TWIN,
                values={"stage": stage(2)},
                remove=["setpoint"],
                if_revision=0,
                deadline=_at(-60),
                units={"stage": "1"},
                tolerances={"stage": 0.5},
                conditions=[condition()],
            )
        ),
        entry_pb2.ControlEntry(
            record_prediction=entry_pb2.RecordPredictionEntry(
                twin_id=TWIN, prediction=prediction(), if_revision=0, conditions=[condition()]
            )
        ),
        entry_pb2.ControlEntry(
            queue_command=entry_pb2.QueueCommandEntry(
                command_id=uuid4().hex,
                twin_id=TWIN,
                name="restart",
                args={"reason": value(1)},
                expire_time=_at(-60),
                conditions=[condition()],
            )
        ),
        entry_pb2.ControlEntry(
            update_command=entry_pb2.UpdateCommandEntry(
                command_id="none",
                twin_id=TWIN,
                state="COMMAND_STATE_FAILED",
                message="x",
                progress_percent=50,
                progress_message="half",
                result={"code": value(1)},
            )
        ),
        entry_pb2.ControlEntry(
            set_connectivities=entry_pb2.SetConnectivitiesEntry(
                items=[{"twin_id": TWIN, "connectivity": "CONNECTIVITY_STALE", "last_arrival_offset": 1}]
            )
        ),
        entry_pb2.ControlEntry(
            cancel_command=entry_pb2.CancelCommandEntry(twin_id=TWIN, command_id="none", message="x", force=True)
        ),
        entry_pb2.ControlEntry(
            acknowledge_desired=entry_pb2.AcknowledgeDesiredEntry(twin_id=TWIN, items=[acknowledgement()])
        ),
        entry_pb2.ControlEntry(record_event=entry_pb2.RecordEventEntry(event=event())),
        entry_pb2.ControlEntry(
            expire_desired=entry_pb2.ExpireDesiredEntry(twin_id=TWIN, channels=["stage"], set_offsets=[1])
        ),
        entry_pb2.ControlEntry(
            set_connectivity=entry_pb2.SetConnectivityEntry(
                twin_id=TWIN, connectivity="CONNECTIVITY_STALE", last_arrival=_at()
            )
        ),
        entry_pb2.ControlEntry(acknowledge_alarm={"twin_id": TWIN, "rule": "none", "note": "n", "if_raise_count": 1}),
        entry_pb2.ControlEntry(shelve_alarm={"twin_id": TWIN, "rule": "none", "until": _at(-60), "note": "n"}),
        entry_pb2.ControlEntry(unshelve_alarm={"twin_id": TWIN, "rule": "none"}),
        entry_pb2.ControlEntry(set_alarm_service={"twin_id": TWIN, "rule": "none", "out_of_service": True}),
        entry_pb2.ControlEntry(look_at_alarms={"twin_id": TWIN}),
        entry_pb2.ControlEntry(end_event={"twin_id": TWIN, "event_id": "none", "end_time": _at()}),
    ]


def condition() -> condition_pb2.StateCondition:
    """Return a comparison that holds."""
    return condition_pb2.StateCondition(
        facet="CONDITION_FACET_DELTA", channel="temp", operator="CONDITION_OPERATOR_ABSENT", value=value(1), unit="Cel"
    )  # fmt: skip


def acknowledgement() -> replica_pb2.DesiredAcknowledgement:
    """Return what a device may say of a target."""
    return replica_pb2.DesiredAcknowledgement(
        channel="stage", set_offset=1, state="DESIRED_STATE_REJECTED", reason="it is locked"
    )


def event() -> event_pb2.Event:
    """Return an event with every field a client may set."""
    return event_pb2.Event(
        event_id=f"e-{uuid4().hex[:12]}", twin_id=TWIN, kind="EVENT_KIND_FAILURE", start_time=_at(60), end_time=_at(),
        mode="bearing", message="seen", channel="temp",
    )  # fmt: skip


def requests() -> dict[str, Message]:
    """Return a valid request by method (``Service/Method``); each is refused only for what an attack makes of it."""
    selector = [storage.SeriesSelector(twin_id=TWIN, channel="temp")]
    return {
        "MeshService/GetMesh": mesh.GetMeshRequest(),
        "IngestionService/Write": ingestion.WriteRequest(batch=batch()),
        "IngestionService/WriteStream": ingestion.WriteStreamRequest(hello={"producer_id": "fuzz"}),
        "IngestionService/ReplayQuarantine": ingestion.ReplayQuarantineRequest(
            request_id=f"r-{uuid4().hex}", filter={"twin_id": "nobody"}, max_rows=10
        ),
        "IngestionService/DiscardQuarantine": ingestion.DiscardQuarantineRequest(
            request_id=f"r-{uuid4().hex}", filter={"twin_id": "nobody"}, comment="a trial", max_rows=10
        ),
        "StorageService/Append": storage.AppendRequest(
            control=entry_pb2.ControlEntry(record_event=entry_pb2.RecordEventEntry(event=event())),
            receipt=b"x",
            quarantine=[storage.QuarantinedRow(twin_id=TWIN, channel="temp", value=value(1), reason=1)],
        ),
        "StorageService/AppendStream": storage.AppendStreamRequest(
            entries=[
                storage.AppendRequest(
                    control=entry_pb2.ControlEntry(record_event=entry_pb2.RecordEventEntry(event=event()))
                )
            ]
        ),
        "StorageService/OpenProducer": storage.OpenProducerRequest(producer_id="fuzz"),
        "StorageService/ResolveSeries": storage.ResolveSeriesRequest(
            series=[
                observation_pb2.SeriesKey(twin_id=TWIN, channel="temp", unit="Cel", kind="CHANNEL_KIND_GAUGE")
            ],
            expected_interval_us=[60_000_000], retention_class=["raw"], registry_offset=1,
        ),
        "StorageService/GetHead": storage.GetHeadRequest(),
        "StorageService/Follow": storage.FollowRequest(
            after={"offset": 1}, kinds=["ENTRY_KIND_CONTROL"], bookmark_interval=Duration(nanos=50_000_000)
        ),
        # Of a twin that nothing else looks at: what is taken away here must be missed nowhere.
        "StorageService/DeleteRange": storage.DeleteRangeRequest(
            request_id=uuid4().hex, twin_ids=["nobody"], series=[{"twin_id": "nobody", "channel": "temp"}],
            start_time=_at(3_600), end_time=_at(),
        ),
        "StorageService/EraseTwin": storage.EraseTwinRequest(request_id=uuid4().hex, twin_id="nobody"),
        "StorageService/SetRetention": storage.SetRetentionRequest(
            rule={"twin_id": "nobody", "channel": "temp", "keep": Duration(seconds=86_400)}
        ),
        "StorageService/ListRetention": storage.ListRetentionRequest(),
        "StorageService/GetErasure": storage.GetErasureRequest(erasure_id="none"),
        "StorageService/ListErasures": storage.ListErasuresRequest(twin_id="nobody", page_size=1),
        "StorageService/RegisterCheckpoint": storage.RegisterCheckpointRequest(
            consumer="fuzz", covered={"offset": 1, "incarnation": "0b1c5a3c-0000-4000-8000-000000000001"},
            expire_after=Duration(seconds=60),
        ),
        "StorageService/ReadRange": storage.ReadRangeRequest(
            series=selector, start_time=_at(3_600), end_time=_at(), min_offset=1, min_quality="QUALITY_BAD",
            as_of_offset=1, last_count=5,
        ),
        "StorageService/ReadLatest": storage.ReadLatestRequest(
            series=selector, min_offset=1, min_quality="QUALITY_GOOD", as_of_offset=1, at=_at()
        ),
        "StorageService/ReadWindow": storage.ReadWindowRequest(
            twin_ids=[TWIN], channels=["temp", "load"], at=_at(), step=MINUTE, steps=10, aggregate=1, gap_policy=2,
            max_gap=MINUTE, min_quality=1, min_offset=1, as_of_offset=0,
        ),
        "StorageService/Aggregate": storage.AggregateRequest(
            series=selector, start_time=_at(86_400), end_time=_at(), bucket=Duration(seconds=3_600), functions=[1, 4],
            min_offset=1, time_zone="Europe/Berlin", min_quality="QUALITY_GOOD", as_of_offset=1, quantiles=[0.5],
            state_values=[1.0], gap_policy=3, max_gap=Duration(seconds=7_200),
        ),
        "StorageService/Downsample": storage.DownsampleRequest(
            series=selector, method=2, max_points=9, min_quality="QUALITY_GOOD", min_offset=1, as_of_offset=1,
            last=Duration(seconds=3_600), at=_at(),
        ),
        "StorageService/ListSeries": storage.ListSeriesRequest(
            twin_id=TWIN, page_size=1, channel="temp", kinds=["CHANNEL_KIND_GAUGE"], min_offset=1, as_of_offset=1
        ),
        "StorageService/ListQuarantine": storage.ListQuarantineRequest(page_size=1, min_offset=1, as_of_offset=1),
        "StorageService/GetStatistics": storage.GetStatisticsRequest(twin_id=TWIN, min_offset=1),
        "TwinService/CreateTwinType": statesync.CreateTwinTypeRequest(twin_type=twin_type()),
        "TwinService/GetTwinType": statesync.GetTwinTypeRequest(twin_type_id="pump", version=1, min_offset=1),
        "TwinService/ListTwinTypes": statesync.ListTwinTypesRequest(page_size=1),
        "TwinService/CreateTwin": statesync.CreateTwinRequest(twin=twin(), if_absent=True),
        "TwinService/CreateTwins": statesync.CreateTwinsRequest(twins=[twin(), twin()], if_absent=True),
        "TwinService/UpdateTwin": statesync.UpdateTwinRequest(
            twin=twin_pb2.Twin(twin_id=TWIN, attributes={"site": "Berlin"}), update_mask={"paths": ["attributes.site"]}
        ),
        "TwinService/MigrateTwins": statesync.MigrateTwinsRequest(
            twin_type_id="pump", to_version=1, twin_ids=[TWIN], dry_run=True
        ),
        "TwinService/GetTwin": statesync.GetTwinRequest(twin_id=TWIN, min_offset=1),
        "TwinService/ListTwins": statesync.ListTwinsRequest(twin_type_id="pump", page_size=1),
        "TwinService/CountTwins": statesync.CountTwinsRequest(twin_type_id="pump", filter="revision > 0"),
        "TwinService/DeleteTwin": statesync.DeleteTwinRequest(twin_id="not-there"),
        "ReplicaService/GetReplica": statesync.GetReplicaRequest(twin_id=TWIN, min_offset=1),
        "ReplicaService/SetDesired": statesync.SetDesiredRequest(
            twin_id=TWIN,
            values={"stage": stage(1), "setpoint": value(20)},
            deadline=MINUTE,
            tolerances={"stage": 0.5},
            conditions=[condition()],
        ),
        "ReplicaService/RecordPrediction": statesync.RecordPredictionRequest(
            twin_id=TWIN, prediction=prediction(), conditions=[condition()]
        ),
        "ReplicaService/Watch": statesync.WatchRequest(
            twin_ids=[TWIN], resume_after={"offset": 1}, policy=1, bookmark_interval=Duration(nanos=50_000_000)
        ),
        "CommandService/SendCommand": statesync.SendCommandRequest(
            twin_id=TWIN, name="restart", args={"reason": value(1)}, time_to_live=MINUTE, conditions=[condition()]
        ),
        "CommandService/GetCommand": statesync.GetCommandRequest(twin_id=TWIN, command_id="none", min_offset=1),
        "CommandService/ListCommands": statesync.ListCommandsRequest(twin_id=TWIN, page_size=1),
        "CommandService/AcknowledgeCommand": statesync.AcknowledgeCommandRequest(
            twin_id=TWIN, command_id="none", state="COMMAND_STATE_SUCCEEDED", result={"code": value(1)}
        ),
        "ReplicaService/VerifyReplicas": statesync.VerifyReplicasRequest(from_checkpoint=True, max_differences=10),
        "ReplicaService/AcknowledgeDesired": statesync.AcknowledgeDesiredRequest(
            twin_id=TWIN, items=[acknowledgement()]
        ),
        "CommandService/CancelCommand": statesync.CancelCommandRequest(twin_id=TWIN, command_id="none"),
        "CommandService/FollowCommands": statesync.FollowCommandsRequest(twin_ids=[TWIN]),
        "EventService/RecordEvent": statesync.RecordEventRequest(event=event()),
        "EventService/ListEvents": statesync.ListEventsRequest(twin_id=TWIN, page_size=1),
        "EventService/EndEvent": statesync.EndEventRequest(twin_id=TWIN, event_id="none", end_time=_at()),
        "AlarmService/ListAlarms": statesync.ListAlarmsRequest(
            twin_id=TWIN, twin_type_id="pump", states=[1, 4], min_severity=1, page_size=1, min_offset=1
        ),
        "AlarmService/GetAlarm": statesync.GetAlarmRequest(twin_id=TWIN, rule="none", min_offset=1),
        "AlarmService/AcknowledgeAlarm": statesync.AcknowledgeAlarmRequest(twin_id=TWIN, rule="none", note="n"),
        "AlarmService/ShelveAlarm": statesync.ShelveAlarmRequest(twin_id=TWIN, rule="none", duration=MINUTE),
        "AlarmService/UnshelveAlarm": statesync.UnshelveAlarmRequest(twin_id=TWIN, rule="none"),
        "AlarmService/SetAlarmService": statesync.SetAlarmServiceRequest(
            twin_id=TWIN, rule="none", out_of_service=True
        ),
        "SubscriptionService/CreateSubscription": statesync.CreateSubscriptionRequest(
            subscription={
                "subscription_id": f"s-{uuid4().hex[:12]}", "webhook": {"url": "https://example.invalid/hook"},
                "kinds": [1, 2], "min_severity": 1, "twin_type_id": "pump", "twin_ids": [TWIN], "retry_for": MINUTE,
                "description": "d",
            }
        ),
        "SubscriptionService/GetSubscription": statesync.GetSubscriptionRequest(subscription_id="none"),
        "SubscriptionService/ListSubscriptions": statesync.ListSubscriptionsRequest(),
        "SubscriptionService/DeleteSubscription": statesync.DeleteSubscriptionRequest(subscription_id="none"),
        "SubscriptionService/RetryDeliveries": statesync.RetryDeliveriesRequest(subscription_id="none"),
        "SubscriptionService/RotateSecret": statesync.RotateSecretRequest(subscription_id="none"),
        "TrainingService/CreateTrainingRun": training.CreateTrainingRunRequest(spec=spec()),
        "TrainingService/GetTrainingRun": training.GetTrainingRunRequest(run_id="none"),
        "TrainingService/ListTrainingRuns": training.ListTrainingRunsRequest(model_id="m-forecast", page_size=1),
        "TrainingService/CancelTrainingRun": training.CancelTrainingRunRequest(run_id="none"),
        "TrainingService/WatchTrainingRun": training.WatchTrainingRunRequest(run_id="none"),
        "ModelService/ListModels": training.ListModelsRequest(page_size=1),
        "ModelService/ListModelVersions": training.ListModelVersionsRequest(model_id="m-forecast", page_size=1),
        "ModelService/GetModelVersion": training.GetModelVersionRequest(model_id="m-forecast", version=1),
        "ModelService/PromoteModelVersion": training.PromoteModelVersionRequest(model_id="m-forecast", version=1),
        "ModelService/DownloadArtifact": training.DownloadArtifactRequest(model_id="m-forecast", version=1),
        "InferenceService/Forecast": inference.ForecastRequest(
            twin_id=TWIN, channel="temp", model_id="m-forecast", model_version=1, horizon=Duration(seconds=1_800),
            quantile_levels=[0.5], at=_at(), min_offset=1, max_staleness=Duration(seconds=86_400),
        ),
        "InferenceService/Optimize": inference.OptimizeRequest(
            twin_id=TWIN, model_id="m-dynamics", control="stage",
            options=[inference.ControlOption(value=v, cost_per_hour=v) for v in (0, 1, 2, 3)],
            limit=80.0, limit_quantile=0.9, target=60.0, target_weight=0.1, switch_cost=0.1, max_switches=1,
            min_dwell=Duration(seconds=900), at=_at(), min_offset=1,
        ),
        "InferenceService/ListDeployments": inference.ListDeploymentsRequest(model_id="m-forecast"),
    }  # fmt: skip
