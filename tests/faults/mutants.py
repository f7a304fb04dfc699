"""Takes the handling of a fault out of a copy of the sources, and expects the test of its row to fail.

    python -m tests.faults.mutants              # all but the slow ones
    python -m tests.faults.mutants --slow       # those that start Ray or whole runs, too
    python -m tests.faults.mutants 52 53        # of these rows of docs/reliability.md

A row without an entry here is not checked this way, and docs/reliability.md says so.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
COPIED = ("hmtl_dist", "tests", "tune_spaces", "cluster", "pyproject.toml", "constraints.txt", "CHANGELOG.md", "docs")
TEST_SECONDS = 240
"""A test that hangs without the handling has failed."""


BROKEN = ("SyntaxError", "ImportError", "ModuleNotFoundError", "NameError", "UnboundLocalError")
"""What says that the mutant is no program, rather than one without the handling."""


@dataclass(frozen=True)
class Mutant:
    """One handling taken out."""

    rows: tuple[int, ...]
    """Rows of the table in docs/reliability.md."""
    path: str
    """Source file under `hmtl_dist`."""
    before: str
    """Stands in the file exactly once."""
    after: str
    test: str
    """What must fail then: file under `tests` and test, with `[parameter]` where one is enough."""
    slow: bool = False
    victim: str = ""
    """What is killed, for a test of several kills: one of this kind is enough."""


CHUNKS_WAIT = "                    return\n                patience.wait(_reason(error, self, key))"
CHUNKS_GIVE_UP = "                    return\n                raise _reason(error, self, key) from None"
TRANSIENT = "if code in _TRANSIENT_CODES or status >= 500 or status == 429:"
DIGEST = "if xxhash.xxh3_64_intdigest(encoded) == digest % (1 << 64):"
FAULT = "faults/test_data.py::test_a_fault_that_passes_leaves_no_trace_in_the_batches"
STAYS = "faults/test_data.py::test_a_fault_that_stays_is_one_line_with_the_object_and_the_reason"
DAMAGED = "faults/test_saving.py::test_a_damaged_checkpoint_costs_the_steps_since_the_one_before"
AILS = "test_a_server_that_ails_neither_stops_nor_slows_a_run"
LOCKED = "test_a_locked_database_neither_stops_nor_slows_a_run"
LOST = "faults/test_cluster.py::test_run_that_loses_a_worker_node_and_then_the_head_ends_with_the_same_weights"
IN_THE_BACKGROUND = '"step": int(step), "values": metrics})\n        self._start()\n'
IN_THE_STEP = (
    IN_THE_BACKGROUND + "        begun = time.time()\n"
    "        while any(reader.left() for reader in self._readers) and time.time() < begun + 5:\n"
    "            time.sleep(0.05)\n"
)
RAY_SERVER = "test_a_killed_server_of_ray_ends_the_run_in_one_line_and_it_goes_on_by_the_same_command"

MUTANTS: tuple[Mutant, ...] = (
    # --- processes and machines
    Mutant(
        (7,),
        "launch/ray_cluster.py",
        "if self.own and (dead := dead_servers()):",
        "if self.own and (dead := None):",
        f"faults/test_ray.py::{RAY_SERVER}[raylet]",
        slow=True,
    ),
    Mutant(
        (8,),
        "launch/ray_cluster.py",
        '("gcs_server", "raylet")',
        '("raylet",)',
        f"faults/test_ray.py::{RAY_SERVER}[gcs_server]",
        slow=True,
    ),
    Mutant(
        (9,),
        "train/watchdog.py",
        "            os._exit(HUNG)",
        "            pass",
        "train/test_watchdog.py::test_a_rank_that_hangs_writes_its_stacks_and_ends",
    ),
    Mutant(
        (12,),
        "launch/ray_train.py",
        "        return new\n",
        "        return False\n",
        "faults/test_ray.py::test_a_notice_that_a_machine_will_go_saves_at_once",
        slow=True,
    ),
    Mutant(
        (13,),
        "train/loop.py",
        "if verdict.stop or run.schedule.ends(step):",
        "if run.schedule.ends(step):",
        "e2e/test_run.py::test_a_run_stopped_in_mid_epoch_ends_like_the_uninterrupted_one",
    ),
    Mutant(
        (14,),
        "train/saving.py",
        "        self._writer.wait()\n        return self._newest",
        "        return self._newest",
        "faults/test_saving.py::test_a_stop_during_a_checkpoint_leaves_that_one_and_its_own_whole[15]",
    ),
    Mutant(
        (15,),
        "launch/signals.py",
        "elif time.monotonic() - self._requested_at > SAME_SECONDS:",
        "elif False:",
        "faults/test_saving.py::test_a_second_ctrl_c_during_a_checkpoint_ends_at_once_and_costs_that_checkpoint",
    ),
    Mutant(
        (16,),
        "engine/checkpoint.py",
        '            say(f"passing over {name}: {error}")\n',
        "            raise\n",
        "faults/test_saving.py::test_a_run_killed_during_a_checkpoint_goes_on_from_the_one_before",
    ),
    Mutant(
        (17,),
        "launch/lock.py",
        "fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "pass",
        "launch/test_lock.py::test_a_second_start_in_a_folder_is_refused_while_the_first_lives",
    ),
    Mutant(
        (18,),
        "launch/lock.py",
        "if etag is not None and not mine and not _is_dead(holder) and self._is_renewed(etag):",
        "if False:",
        "launch/test_lock.py::test_a_second_start_on_s3_is_refused_while_the_first_renews_its_lease",
    ),
    Mutant(
        (19,),
        "launch/lock.py",
        "not _is_dead(holder) and self._is_renewed(etag)",
        "True",
        "launch/test_lock.py::test_the_lease_of_a_dead_process_is_taken_over",
    ),
    # --- checkpoints and their storage
    Mutant(
        (22,),
        "data/storage/local.py",
        "if error.errno in (errno.ENOSPC, errno.EDQUOT):",
        "if error.errno == errno.ENOSPC:\n            raise",
        "faults/test_saving.py::"
        "test_a_disk_that_fills_up_ends_the_run_in_one_line_and_costs_the_steps_since_the_last_checkpoint",
    ),
    Mutant(
        (23,),
        "engine/checkpoint.py",
        "except SafetensorError as error:  # how it reports a full disk",
        "except ZeroDivisionError as error:",
        "faults/test_saving.py::test_a_quota_met_in_mid_run_is_one_line_and_the_run_goes_on_when_it_is_raised",
    ),
    Mutant(
        (24,),
        "tracking/jsonl.py",
        "except (OSError, ValueError) as error:",
        "except ZeroDivisionError as error:",
        "tracking/test_jsonl.py::test_a_full_disk_costs_one_warning_and_not_the_run",
    ),
    Mutant(
        (25,),
        "train/background.py",
        "            running.result()",
        "            pass",
        "faults/test_saving.py::test_storage_that_stays_away_ends_the_run_in_one_line_and_costs_no_checkpoint",
    ),
    Mutant(
        (26,),
        "data/storage/s3.py",
        "                patience.wait(_reason(error, self, key))\n            else:",
        "                raise _reason(error, self, key) from None\n            else:",
        "faults/test_saving.py::test_an_upload_that_fails_at_first_is_repeated[500]",
    ),
    Mutant(
        (27,),
        "train/background.py",
        "            running.result()",
        "            pass",
        "faults/test_saving.py::test_access_denied_to_the_bucket_ends_the_run_in_one_line",
    ),
    Mutant(
        (28,),
        "engine/checkpoint.py",
        "    if hashlib.sha256(data).hexdigest() != file.sha256:",
        "    if False:",
        f"{DAMAGED}[flipped bit]",
    ),
    Mutant(
        (29,),
        "engine/checkpoint.py",
        '        raise DamagedCheckpointError(f"checkpoint {url} is incomplete: {key} is missing") from error',
        "        raise",
        f"{DAMAGED}[missing file]",
    ),
    Mutant(
        (30,),
        "engine/checkpoint.py",
        '        raise DamagedCheckpointError(f"checkpoint {where} is damaged: {MANIFEST} is no JSON") from error',
        "        raise",
        f"{DAMAGED}[torn manifest]",
    ),
    Mutant(
        (31,),
        "engine/checkpoint.py",
        'if content["format_version"] != FORMAT_VERSION:',
        "if False:",
        "engine/test_checkpoint.py::test_a_format_of_the_future_is_refused_rather_than_passed_over",
    ),
    Mutant(
        (32,),
        "train/saving.py",
        "remove_scratch(self._rank_context.scratch)",
        "pass",
        "train/test_saving.py::test_what_a_killed_writer_left_is_removed",
    ),
    Mutant(
        (33,),
        "engine/checkpoint.py",
        "for step in whole[: max(keep_last, 1)]} | set(protected)",
        "for step in whole[: max(keep_last, 1)]}",
        "faults/test_saving.py::test_of_all_checkpoints_the_last_ones_and_the_best_stay",
    ),
    # --- going on
    Mutant(
        (34,),
        "train/saving.py",
        "    if changed:\n        said",
        "    if False:\n        said",
        "train/test_saving.py::test_a_changed_setting_is_refused_by_name",
    ),
    Mutant(
        (35,),
        "train/saving.py",
        "if before.tasks.keys() == config.tasks.keys():",
        "if False:",
        "train/test_saving.py::test_another_order_of_the_tasks_is_refused",
    ),
    Mutant(
        (36,),
        "train/saving.py",
        "if entries.data_digest != self._data.digest:",
        "if False:",
        "train/test_saving.py::test_other_data_are_refused",
    ),
    Mutant(
        (37,),
        "data/stream/plan.py",
        "return range(rank * owned, (rank + 1) * owned)",
        "return range(rank, self.lanes, world_size) if owned else range(0)",
        "faults/test_world_size.py::test_every_step_takes_the_same_samples_in_the_same_order",
        slow=True,
    ),
    Mutant(
        (38,),
        "tracking/delivery.py",
        'if event.get("step", step) <= step:',
        "if True:",
        "tracking/test_delivery.py::test_steps_after_the_checkpoint_are_dropped_and_nothing_else",
    ),
    # --- numbers
    Mutant(
        (39,),
        "train/loop.py",
        "        if verdict.finite:",
        "        if True:",
        "train/test_guard.py::test_the_run_stops_before_the_step_and_names_task_step_and_sample",
    ),
    Mutant(
        (40,),
        "train/guard.py",
        'if self.policy == "stop":',
        "if True:",
        "train/test_guard.py::test_a_skipped_step_is_counted_and_changes_nothing_else",
    ),
    Mutant(
        (41,),
        "train/guard.py",
        "if self.skipped > self.max_skipped:",
        "if False:",
        "train/test_guard.py::test_so_many_steps_are_skipped_and_no_more",
    ),
    # --- the way to the data
    Mutant(
        (42,),
        "data/storage/config.py",
        "patience_minutes: Annotated[float, Field(ge=0)] = 10.0",
        "patience_minutes: Annotated[float, Field(ge=0)] = 0.001",
        "faults/test_data.py::test_a_server_that_refuses_connections_for_a_while_is_waited_for",
    ),
    Mutant(
        (43,),
        "data/storage/s3.py",
        "FIRST_CONTACT_SECONDS = 5.0",
        "FIRST_CONTACT_SECONDS = 75.0",
        "faults/test_data.py::test_a_port_nobody_listens_at_is_one_line",
        slow=True,
    ),
    Mutant(
        (44,),
        "data/storage/s3.py",
        "FIRST_CONTACT_SECONDS = 5.0",
        "FIRST_CONTACT_SECONDS = 75.0",
        "faults/test_data.py::test_a_host_that_has_no_address_is_one_line",
        slow=True,
    ),
    Mutant(
        (45,),
        "data/storage/faults.py",
        '    "403": "access to {url} is denied at {endpoint}: these credentials lack the right to do this",\n',
        "",
        f"{STAYS}[403 of a balancer]",
    ),
    Mutant((46,), "data/storage/faults.py", '    "NoSuchKey": "{url} does', '    "No": "{url} does', f"{STAYS}[404]"),
    Mutant((47,), "data/storage/faults.py", TRANSIENT, "if status in (429, 503):", f"{FAULT}[500]"),
    Mutant((48,), "data/storage/faults.py", TRANSIENT, "if status in (429, 500):", f"{FAULT}[503 SlowDown]"),
    Mutant((49,), "data/storage/s3.py", CHUNKS_WAIT, CHUNKS_GIVE_UP, f"{FAULT}[reset before the answer]"),
    Mutant((50,), "data/storage/s3.py", CHUNKS_WAIT, CHUNKS_GIVE_UP, f"{FAULT}[reset inside the body]"),
    Mutant(
        (51,),
        "data/storage/s3.py",
        "raise boto_errors.IncompleteReadError(actual_bytes=position, expected_bytes=end)",
        "return",
        f"{FAULT}[body cut short]",
    ),
    Mutant(
        (52,),
        "data/storage/client.py",
        "READ_TIMEOUT_SECONDS = 20.0",
        "READ_TIMEOUT_SECONDS = 4000.0",
        "faults/test_data.py::test_a_stalled_body_is_asked_for_again",
        slow=True,
    ),
    Mutant((53,), "data/stream/reader.py", DIGEST, "if True:", f"{FAULT}[flipped bit]"),
    Mutant((54,), "data/stream/reader.py", DIGEST, "if True:", f"{STAYS}[flipped bits]"),
    Mutant(
        (55,),
        "data/dataset/index.py",
        "            if hashlib.sha256(data).digest() == digest:",
        "            if True:",
        "faults/test_data.py::test_a_flipped_bit_of_the_index_is_read_again[shard-000001.npz]",
    ),
    Mutant(
        (56,),
        "data/storage/s3.py",
        '{} if entity_tag == "" else {"IfMatch": entity_tag}',
        "{}",
        "data/storage/test_s3.py::test_an_object_replaced_while_it_is_read_is_noticed",
    ),
    Mutant(
        (57,),
        "data/storage/faults.py",
        '    "RequestTimeTooSkewed"',
        '    "None"',
        "faults/test_data.py::test_the_server_itself_refuses_a_request_dated_by_a_wrong_clock",
    ),
    Mutant((58,), "data/storage/faults.py", '    "ExpiredToken"', '    "None"', f"{STAYS}[expired credentials]"),
    # --- the data themselves
    Mutant(
        (59,),
        "data/storage/s3.py",
        "elif end > (size := _size(answer)):",
        "elif end < (size := _size(answer)) - (1 << 60):",
        "faults/test_data.py::test_a_truncated_tar_is_one_line",
        slow=True,
    ),
    Mutant(
        (60,),
        "data/dataset/tars.py",
        "            _refuse_rest(tar)\n",
        "",
        "faults/test_tars.py::test_a_tar_that_is_not_whole_is_one_line_and_no_smaller_set",
    ),
    Mutant(
        (61,),
        "data/storage/faults.py",
        '    "InvalidRange"',
        '    "None"',
        "faults/test_data.py::test_a_shard_of_no_bytes_is_one_line",
    ),
    Mutant(
        (62,),
        "data/dataset/index.py",
        'if not storage.exists(f"{split}/index.json"):',
        "if False:",
        "faults/test_data.py::test_a_missing_index_says_how_to_make_one",
    ),
    Mutant(
        (63,),
        "data/stream/reader.py",
        DIGEST,
        "if True:",
        "faults/test_data.py::test_an_index_of_other_shards_names_the_first_sample_that_differs",
    ),
    Mutant(
        (64,),
        "data/dataset/index.py",
        "            if hashlib.sha256(data).digest() == digest:",
        "            if True:",
        "faults/test_data.py::test_an_index_of_a_newer_table_is_refused",
    ),
    Mutant(
        (65,),
        "data/dataset/index.py",
        "    except ValidationError as error:\n        raise _DamagedIndexError",
        "    except ZeroDivisionError as error:\n        raise _DamagedIndexError",
        "faults/test_data.py::test_a_header_that_is_no_json_is_one_line",
    ),
    Mutant(
        (66,),
        "data/stream/loader.py",
        "except DecodeError as error:",
        "except ZeroDivisionError as error:",
        "faults/test_data.py::test_a_damaged_picture_gives_up_its_slot_and_is_named[undecodable]",
    ),
    Mutant(
        (67,),
        "data/decode.py",
        "if height * width > MAX_PIXELS:",
        "if False:",
        "faults/test_data.py::test_a_damaged_picture_gives_up_its_slot_and_is_named[gigantic]",
    ),
    Mutant(
        (68,),
        "data/stream/batches.py",
        "if stats.damaged > self._max_bad_share * max(stats.samples, min(epoch, JUDGED_SAMPLES)):",
        "if stats.damaged > (1 << 40) * max(stats.samples, min(epoch, JUDGED_SAMPLES)):",
        "faults/test_data.py::test_too_many_damaged_pictures_end_the_run_naming_one",
    ),
    Mutant(
        (69,),
        "data/dataset/tars.py",
        '    except ValueError as error:\n        raise UserError(f"{where} is no JSON',
        '    except ZeroDivisionError as error:\n        raise UserError(f"{where} is no JSON',
        "faults/test_tars.py::test_labels_that_are_no_json_name_their_file",
    ),
    Mutant(
        (70,),
        "data/dataset/index.py",
        "_check_table(table, self.header.fields, int(self.num_bytes[shard]))\n",
        "pass\n",
        "faults/test_run.py::test_a_label_out_of_range_ends_the_run_in_one_line",
        slow=True,
    ),
    # --- the MLflow server
    Mutant(
        (75,),
        "launch/sync.py",
        "rest = deliver_rest(begun, folder, on_progress)",
        "from hmtl_dist.tracking.sink import Rest\n\n        rest = Rest(0, 0) if deliver_rest else None",
        "faults/test_tracking.py::test_a_server_that_goes_away_is_delivered_to_by_sync",
        slow=True,
    ),
    Mutant(
        (76,),
        "launch/sync.py",
        "if begun.run_id != recording.run_id:",
        "if begun is recording:",
        "faults/test_tracking.py::test_a_run_that_began_while_the_server_was_away_gets_its_mlflow_run_by_sync",
        slow=True,
    ),
    Mutant(
        (77,),
        "tracking/delivery.py",
        "except Exception as error:  # noqa: BLE001 - whatever the client raises: only whether it answers counts",
        "except ZeroDivisionError as error:",
        "tracking/test_mlflow.py::test_a_server_that_goes_away_and_comes_back_gets_everything_once_and_in_order",
        slow=True,
    ),
    Mutant(
        (80,),
        "tracking/delivery.py",
        "if refusals == REFUSALS:",
        "if refusals < 0:",
        "tracking/test_mlflow.py::test_an_event_that_the_server_refuses_holds_up_nothing",
    ),
    Mutant(
        (81,),
        "launch/sync.py",
        "with only_one(run_folder(config), config.name):",
        "if only_one:",
        "faults/test_tracking.py::test_a_run_is_not_delivered_while_it_is_being_trained",
        slow=True,
    ),
    Mutant(
        (82,),
        "tracking/runs.py",
        'if client.get_run(run_id).info.status == "RUNNING":',
        "if False:",
        "tracking/test_mlflow.py::test_the_driver_ends_a_run_whose_workers_died",
    ),
    # --- several kills: what is taken out is what the row's own test looks at
    Mutant(
        (1,),
        "engine/core.py",
        "        self._load_optimizer_state(state.optimizer)\n",
        "",
        "faults/test_chaos.py::test_weights_optimizer_and_average_are_those_of_the_uninterrupted_run",
        slow=True,
        victim="worker",
    ),
    Mutant(
        (2,),
        "train/worker.py",
        "cursor = divmod(self.engine.global_step, self._plan.steps_per_epoch)",
        "cursor = divmod(0, self._plan.steps_per_epoch)",
        "faults/test_chaos.py::test_the_ledger_is_the_plan_and_every_sample_is_seen_once_an_epoch",
        slow=True,
        victim="workers",
    ),
    Mutant(
        (3,),
        "train/worker.py",
        "cursor = divmod(self.engine.global_step, self._plan.steps_per_epoch)",
        "cursor = divmod(0, self._plan.steps_per_epoch)",
        "faults/test_chaos.py::test_every_step_stands_in_the_journal_once_with_the_loss_of_the_uninterrupted_run",
        slow=True,
        victim="driver",
    ),
    Mutant(
        (5,),
        "data/storage/s3.py",
        "        return outage_seconds() if reached else FIRST_CONTACT_SECONDS",
        "        return 0.0",
        "faults/test_chaos.py::test_every_kill_struck_and_the_run_went_on",
        slow=True,
        victim="s3",
    ),
    Mutant(
        (6,),
        "tracking/delivery.py",
        "                elif not self._away:\n                    self._away = True\n",
        "                else:\n                    raise AwayError from error\n                if False:\n",
        "faults/test_chaos.py::test_it_is_one_mlflow_run_with_one_value_a_step",
        slow=True,
        victim="mlflow",
    ),
    Mutant(
        (10,),
        "train/watchdog.py",
        "            os._exit(HUNG)",
        "            pass",
        "faults/test_ray.py::test_a_rank_that_hangs_is_ended_by_the_watchdog_and_started_again",
        slow=True,
    ),
    Mutant(
        (11,),
        "data/stream/worker.py",
        "            raise LoaderDiedError(self._death(number))",
        '            raise RuntimeError("no message")',
        "data/stream/test_batches.py::test_a_killed_worker_stops_the_stream_at_once",
    ),
    Mutant(
        (20,),
        "launch/ray_train.py",
        "        ray.get(relay.fail.remote(final))\n",
        "",
        "launch/test_ray_train.py::test_what_starting_again_cannot_mend_is_not_tried_again",
        slow=True,
    ),
    Mutant(
        (21,),
        "launch/ray_train.py",
        '            return TrainingError(f"rank {rank}: {_DIED}", keep_logs=True)',
        "            continue",
        "launch/test_ray_train.py::test_what_breaks_in_a_worker_is_one_line_for_the_driver",
        slow=True,
    ),
    # --- machines of a cluster
    Mutant((83,), "launch/ray_train.py", "max_failures=launch.max_failures", "max_failures=0", LOST, slow=True),
    Mutant(
        (84,),
        "launch/submit.py",
        "                if time.monotonic() - lost_at > _PATIENCE_SECONDS:\n                    raise",
        "                if time.monotonic() < lost_at:\n                    raise",
        LOST,
        slow=True,
    ),
    Mutant(
        (85,),
        "launch/submit.py",
        'env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}',
        'env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "0.05"}',
        "e2e/test_ray_job.py::test_ctrl_c_on_a_terminal_may_stop_the_job_which_saves_first",
        slow=True,
    ),
    # --- a thread of its own delivers: without it a step waits until its figures have arrived
    *(
        Mutant(
            (row,),
            "tracking/jsonl.py",
            IN_THE_BACKGROUND,
            IN_THE_STEP,
            f"faults/test_tracking.py::{test}",
            slow=True,
        )
        for row, test in (
            (71, f"{AILS}[slow]"),
            (72, f"{AILS}[stalled]"),
            (73, f"{AILS}[erroring]"),
            (74, f"{AILS}[resetting]"),
            (78, f"{LOCKED}[server]"),
            (79, f"{LOCKED}[file]"),
        )
    ),
    Mutant(
        (86,),
        "train/recording.py",
        "elsewhere = restored.undelivered if restored else ()",
        "elsewhere = ()",
        "faults/test_tracking.py::test_what_a_lost_machine_had_not_delivered_comes_from_the_checkpoint_on_another_one",
    ),
    Mutant(
        (87,),
        "tune/member.py",
        "if lost and not self._trial.exchanges:",
        "if lost and self._trial.exchanges:",
        "tune/test_member.py::test_an_evaluation_that_was_lost_on_its_way_is_told_from_its_checkpoint",
    ),
    Mutant(
        (88,),
        "engine/checkpoint.py",
        "                damaged.append(str(error))\n",
        "                pass\n",
        "engine/test_checkpoint.py::test_where_none_is_whole_they_are_named_and_nothing_begins_anew[flipped_byte]",
    ),
    Mutant(
        (89,),
        "data/forkserver.py",
        "with _one_core_each(), _short_paths(), _signals_left_to_us():",
        "with _one_core_each(), _short_paths():",
        "data/stream/test_batches.py::test_a_signal_to_the_process_group_ends_no_loader[15]",
    ),
    Mutant(
        (90,),
        "launch/ray_cluster.py",
        "functools.partial(popen, start_new_session=True)",
        "popen",
        "launch/test_ray_train.py::test_a_signal_to_the_process_group_reaches_the_workers_as_a_request_and_leaves_nothing_"
        "behind[15]",
        slow=True,
    ),
    Mutant(
        (91,),
        "console.py",
        "            if error.errno not in (errno.EIO, errno.EPIPE):",
        "            if error.errno:",
        "test_console.py::test_a_reader_that_left_costs_its_lines_and_not_the_run[False]",
    ),
)


def mutate(mutant: Mutant, folder: Path) -> None:
    """Take the handling out of a copy."""
    file = folder / "hmtl_dist" / mutant.path
    source = file.read_text()
    assert source.count(mutant.before) == 1, f"{mutant.path}: {mutant.before!r} does not stand in it once"
    changed = source.replace(mutant.before, mutant.after)
    compile(changed, str(file), "exec")
    file.write_text(changed)


def survives(mutant: Mutant, folder: Path) -> str:
    """Run the test without the handling; returns why it was not caught, empty if the test failed or died as it must."""
    file = folder / "hmtl_dist" / mutant.path
    source = file.read_text()
    mutate(mutant, folder)
    try:
        done = subprocess.run(
            [
                *(
                    sys.executable,
                    "-m",
                    "pytest",
                    f"tests/{mutant.test}",
                    "-n",
                    "0",
                    "-q",
                    "-x",
                    "-p",
                    "no:cacheprovider",
                ),
                *("-o", f"timeout={TEST_SECONDS}"),
            ],
            cwd=folder,
            env=os.environ
            | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "", "HMTL_CHAOS_VICTIM": mutant.victim},
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        file.write_text(source)
    if done.returncode < 0 or (done.returncode == 1 and not any(error in done.stdout for error in BROKEN)):
        return ""
    return "the test passes without it" if done.returncode == 0 else f"no verdict: {done.stdout[-600:]}{done.stderr}"


def check(mutants: Sequence[Mutant], folder: Path) -> list[Mutant]:
    """Check each, saying so, and return those that were not caught."""
    for name in COPIED:
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    left: list[Mutant] = []
    for number, mutant in enumerate(mutants, start=1):
        begun = time.monotonic()
        reason = survives(mutant, folder)
        rows = ", ".join(map(str, mutant.rows))
        verdict = f"NOT CAUGHT: {reason}" if reason else "caught"
        took = time.monotonic() - begun
        print(f"{number}/{len(mutants)} row {rows} {mutant.path} {took:.0f} s: {verdict}", flush=True)
        if reason:
            left.append(mutant)
    return left


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=int, nargs="*", help="rows of the table; all if none is given")
    parser.add_argument("--slow", action="store_true", help="those that start Ray or whole runs, too")
    settings = parser.parse_args()
    chosen = [
        mutant
        for mutant in MUTANTS
        if (settings.rows and set(settings.rows) & set(mutant.rows))
        or (not settings.rows and (settings.slow or not mutant.slow))
    ]
    with tempfile.TemporaryDirectory(prefix="hmtl-mutants-") as folder:
        left = check(chosen, Path(folder))
    rows = sorted({row for mutant in chosen if mutant not in left for row in mutant.rows})
    print(f"{len(chosen) - len(left)} of {len(chosen)} caught; rows {', '.join(map(str, rows))}")
    raise SystemExit(bool(left))


if __name__ == "__main__":
    main()
