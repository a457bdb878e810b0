"""The statements of the registry, by name."""

# ruff: noqa: S608  what is put together here are constants of this module; values are always parameters

from __future__ import annotations

from typing import Final

NOW_US: Final = "(extract(epoch from clock_timestamp()) * 1000000)::bigint"

# A lineage of another incarnation cannot be compared with the erasure: it counts as older.
_ERASED: Final = """
  from erasures as erased
  where erased.tenant = versions.tenant and versions.lineage->'twin_ids' ? erased.twin_id
    and (erased.incarnation <> versions.lineage->>'incarnation'
      or erased.log_offset > (versions.lineage->>'as_of_offset')::bigint)"""
_ERASED_TWINS: Final = f"array(select distinct erased.twin_id{_ERASED} order by 1) as erased_twin_ids"

_RUN_COLUMNS: Final = f"""tenant, run_id, number, spec, state, progress, phase, error_reason, error_message,
 evaluations, promoted_version, create_time_us, start_time_us, end_time_us, train_window_count, revision,
 array(select distinct erased_twin_id from versions, lateral (select erased.twin_id as erased_twin_id{_ERASED}) as found
   where versions.tenant = runs.tenant and versions.model_id = runs.model_id
     and versions.lineage->>'run_id' = runs.run_id order by 1) as erased_twin_ids"""
_HELD: Final = (
    "tenant = %(tenant)s and run_id = %(run_id)s and owner = %(owner)s and attempt = %(attempt)s and state = 2"
)

INSERT_RUN: Final = f"""
insert into runs (tenant, run_id, request_id, digest, model_id, spec, phase, create_time_us)
values (%(tenant)s, %(run_id)s, %(request_id)s, %(digest)s, %(model_id)s, %(spec)s, %(phase)s, {NOW_US})
on conflict (tenant, request_id) where request_id <> '' do nothing
returning {_RUN_COLUMNS}"""
RUN_BY_REQUEST: Final = f"""
select {_RUN_COLUMNS}, digest from runs where tenant = %(tenant)s and request_id = %(request_id)s"""
MODEL_TASK: Final = "select task from models where tenant = %(tenant)s and model_id = %(model_id)s"

GET_RUN: Final = f"select {_RUN_COLUMNS} from runs where tenant = %(tenant)s and run_id = %(run_id)s"
LIST_RUNS: Final = f"""
select {_RUN_COLUMNS} from runs
where tenant = %(tenant)s and (%(model_id)s = '' or model_id = %(model_id)s)
  and (%(after)s::bigint = 0 or number < %(after)s::bigint)
order by number desc limit %(size)s"""
GET_RUNS: Final = f"""
select {_RUN_COLUMNS} from runs
join unnest(%(tenants)s::text[], %(run_ids)s::text[]) as wanted (wanted_tenant, wanted_run_id)
  on tenant = wanted_tenant and run_id = wanted_run_id"""

CANCEL_QUEUED: Final = f"""
update runs set state = 5, phase = 'cancelled', end_time_us = {NOW_US}, revision = revision + 1
where tenant = %(tenant)s and run_id = %(run_id)s and state = 1
returning {_RUN_COLUMNS}"""
CANCEL_RUNNING: Final = f"""
update runs set cancel_requested = true, phase = 'cancelling', revision = revision + 1
where tenant = %(tenant)s and run_id = %(run_id)s and state = 2
returning {_RUN_COLUMNS}"""

# A worker fell silent: if the run was to be cancelled, it is; if it has killed two workers, a third would be no wiser.
CLOSE_ABANDONED: Final = f"""
update runs set
  state = case when cancel_requested then 5 else 4 end,
  phase = case when cancel_requested then 'cancelled' else 'failed' end,
  error_reason = case when cancel_requested then '' else 'INTERNAL' end,
  error_message = case when cancel_requested then '' else
    'Two workers ended while they trained this run, most likely for want of memory. Learn from fewer twins or inputs, '
    'take a longer step or a shorter context, or give the worker more memory; then start a new run.' end,
  end_time_us = {NOW_US}, owner = '', lease_until = null, revision = revision + 1
where (tenant, run_id) in (
  select tenant, run_id from runs
  where state = 2 and lease_until < clock_timestamp() and (cancel_requested or attempt >= %(most_attempts)s)
  for update skip locked)"""
CLAIM: Final = f"""
update runs set
  state = 2, owner = %(owner)s, attempt = attempt + 1, phase = 'starting', progress = 0,
  start_time_us = case when start_time_us = 0 then {NOW_US} else start_time_us end,
  lease_until = clock_timestamp() + make_interval(secs => %(lease_s)s), revision = revision + 1
where (tenant, run_id) in (
  select tenant, run_id from runs
  where state = 1 or (state = 2 and lease_until < clock_timestamp() and not cancel_requested)
  order by number limit 1 for update skip locked)
returning {_RUN_COLUMNS}, attempt"""
BEAT: Final = f"""
update runs set
  lease_until = clock_timestamp() + make_interval(secs => %(lease_s)s),
  revision = revision + case when progress <> %(progress)s or phase <> %(phase)s then 1 else 0 end,
  progress = %(progress)s, phase = case when cancel_requested then phase else %(phase)s end,
  train_window_count = %(windows)s
where {_HELD}
returning cancel_requested"""
LOCK_HELD: Final = f"select cancel_requested from runs where {_HELD} for update"
FINISH: Final = f"""
update runs set
  state = %(state)s, progress = %(progress)s, phase = %(phase)s, error_reason = %(error_reason)s,
  error_message = %(error_message)s, evaluations = %(evaluations)s, promoted_version = %(promoted_version)s,
  train_window_count = %(windows)s, end_time_us = {NOW_US}, owner = '', lease_until = null, revision = revision + 1
where {_HELD}
returning {_RUN_COLUMNS}"""
GIVE_BACK: Final = """
update runs set lease_until = clock_timestamp() - interval '1 second'
where owner = %(owner)s and state = 2"""
REQUEUE: Final = f"""
update runs set state = 1, phase = 'queued', progress = 0, owner = '', lease_until = null, attempt = attempt - 1,
  revision = revision + 1
where {_HELD}"""

ENSURE_MODEL: Final = """
insert into models (tenant, model_id, task) values (%(tenant)s, %(model_id)s, %(task)s) on conflict do nothing"""
LOCK_MODEL: Final = """
select task, production_version, latest_version from models
where tenant = %(tenant)s and model_id = %(model_id)s for update"""
SET_LATEST: Final = """
update models set latest_version = %(latest)s where tenant = %(tenant)s and model_id = %(model_id)s"""
INSERT_VERSION: Final = f"""
insert into versions (tenant, model_id, version, task, family, signature, metrics, lineage, artifact_sha256,
  artifact_bytes, create_time_us, passed_gate, golden_rows, golden_tolerance, golden_window, golden_calendar,
  golden_future, golden_quantiles)
values (%(tenant)s, %(model_id)s, %(version)s, %(task)s, %(family)s, %(signature)s, %(metrics)s, %(lineage)s,
  %(artifact_sha256)s, %(artifact_bytes)s, {NOW_US}, %(passed_gate)s, %(golden_rows)s, %(golden_tolerance)s,
  %(golden_window)s, %(golden_calendar)s, %(golden_future)s, %(golden_quantiles)s)"""
RETIRE: Final = "update versions set stage = 3 where tenant = %(tenant)s and model_id = %(model_id)s and stage = 2"
SET_PRODUCTION: Final = """
update versions set stage = 2 where tenant = %(tenant)s and model_id = %(model_id)s and version = %(version)s"""
POINT_PRODUCTION: Final = """
update models set production_version = %(version)s where tenant = %(tenant)s and model_id = %(model_id)s"""

_VERSION_COLUMNS: Final = f"""number, model_id, version, task, family, stage, signature, metrics, lineage,
 artifact_sha256, artifact_bytes, create_time_us, passed_gate, {_ERASED_TWINS}"""
_GOLDEN_COLUMNS: Final = """golden_rows, golden_tolerance, golden_window, golden_calendar, golden_future,
 golden_quantiles"""
_LISTED: Final = """ from versions
where tenant = %(tenant)s and (%(model_id)s = '' or model_id = %(model_id)s)
  and (%(stage)s = 0 or stage = %(stage)s) and (%(after)s::bigint = 0 or number < %(after)s::bigint)
order by number desc limit %(size)s"""
LIST_VERSIONS: Final = f"select {_VERSION_COLUMNS}{_LISTED}"
LIST_VERSIONS_WITH_GOLDEN: Final = f"select {_VERSION_COLUMNS}, {_GOLDEN_COLUMNS}{_LISTED}"
GET_VERSION: Final = f"""
select {_VERSION_COLUMNS}, {_GOLDEN_COLUMNS} from versions
where tenant = %(tenant)s and model_id = %(model_id)s
  and (version = %(version)s or (%(version)s = 0 and stage = 2))"""
LIST_MODELS: Final = """
select model_id, task, production_version, latest_version from models
where tenant = %(tenant)s and model_id > %(after)s order by model_id limit %(size)s"""

FOLLOWED: Final = "select incarnation, log_offset from erasures_position"
NOTE_ERASED: Final = """
insert into erasures (tenant, twin_id, log_offset, incarnation)
select tenant, twin_id, log_offset, %(incarnation)s
from unnest(%(tenants)s::text[], %(twin_ids)s::text[], %(offsets)s::bigint[]) as told (tenant, twin_id, log_offset)
on conflict do nothing"""
NOTE_FOLLOWED: Final = """
insert into erasures_position (incarnation, log_offset) values (%(incarnation)s, %(offset)s)
on conflict (singleton) do update set incarnation = excluded.incarnation, log_offset = excluded.log_offset"""
EMPTY_GOLDEN: Final = f"""
update versions set golden_rows = 0, golden_window = '', golden_calendar = '', golden_future = '', golden_quantiles = ''
where tenant = any(%(tenants)s::text[]) and stage <> 2 and golden_rows > 0 and exists (select 1{_ERASED})"""
IS_ERASED: Final = f"""
select exists (select 1{_ERASED}) as erased from versions
where tenant = %(tenant)s and model_id = %(model_id)s and version = %(version)s"""
