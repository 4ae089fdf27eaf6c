"""A run in an MLflow tracking store: a server, or a database file of this machine.

What MLflow reads from its own environment stands: MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME,
credentials and others.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import Any

from pipeline.errors import BadInput
from pipeline.train.trackers.contract import (
    PATIENCE_S,
    Outcome,
    TrackedRun,
    Tracker,
    flat,
    one_line,
)

EXPERIMENT = "stillframe"
STATES: dict[Outcome, str] = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
METRICS_OF_A_CALL, PARAMS_OF_A_CALL = 1000, 100
"""As many as a store takes at once."""
PROPER = re.compile(r"[^\w\-./: ]")
"""What MLflow takes in no name."""
TRIES = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
"""While a person waits. Else MLflow asks a server that does not answer for four minutes."""


class MLflow(Tracker):
    """Metrics are sent from a thread of their own, so that no step waits for a server."""

    title = "MLflow"
    package = "mlflow"

    def __init__(self, run: TrackedRun) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # to its makers
        import mlflow

        for name in ("mlflow", "alembic"):  # which tell of tables that they make
            logging.getLogger(name).setLevel(logging.WARNING)
        uri = mlflow.get_tracking_uri()
        try:
            with _few_tries():
                self._client: Any = mlflow.MlflowClient(tracking_uri=uri)
                self.last_step = 0
                self._id = self._known(run) or self._begun(run)
        except Exception as error:
            raise BadInput(
                f"{self.title} does not take run '{run.name}' at {uri}: {one_line(error)}",
                "set MLFLOW_TRACKING_URI, for example to sqlite:///mlflow.db, or leave --track "
                "mlflow out",
            ) from error
        self.where = f"run {self._id} at {uri}"
        self._error: Exception | None = None
        self._queue: SimpleQueue[list[Any] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._send, name="mlflow", daemon=True)
        self._thread.start()

    def log(self, step: int, values: dict[str, float]) -> None:
        if self._error is not None:
            raise self._error
        self._queue.put(_metrics(step, values))

    def close(self, outcome: Outcome, step: int, scores: dict[str, float]) -> None:
        self._queue.put(None)
        self._thread.join(PATIENCE_S)
        if self._thread.is_alive():
            raise TimeoutError(f"it has not taken all metrics after {PATIENCE_S:.0f} s")
        if self._error is not None:
            raise self._error
        with _few_tries():
            metrics = _metrics(step, scores)
            known = self._client.get_run(self._id).data.metrics if metrics else {}
            self._log_batch([each for each in metrics if known.get(each.key) != each.value])
            self._client.set_terminated(self._id, STATES[outcome])

    def _known(self, run: TrackedRun) -> str | None:
        """The id of the run that this folder belongs to, from now on running again; None where
        there is none in this store."""
        run_id = run.kept_id("mlflow")
        if run_id is None:
            return None
        from mlflow.exceptions import MlflowException

        try:
            found = self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        if found.info.lifecycle_stage == "deleted":
            return None
        self._client.update_run(run_id, status="RUNNING")
        self.last_step = max(
            (each.step for each in self._client.get_metric_history(run_id, "loss")), default=0
        )
        return run_id

    def _begun(self, run: TrackedRun) -> str:
        """The id of a new run, with what the run is made from."""
        from mlflow.entities import Param

        tags = {"stillframe": run.config["stillframe"], "cache": run.config["cache"]["fingerprint"]}
        if run.group is not None:
            tags["sweep"] = run.group
        begun = self._client.create_run(self._experiment(), run_name=run.name, tags=tags)
        params = [
            Param(key, value if isinstance(value, str) else json.dumps(value))
            for key, value in flat(run.config)
        ]
        for some in _parts(params, PARAMS_OF_A_CALL):
            self._client.log_batch(begun.info.run_id, params=some)
        run.keep_id("mlflow", begun.info.run_id)
        return str(begun.info.run_id)

    def _experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self._client.create_experiment(name))
            except MlflowException:  # by another worker, at this moment
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        return str(found.experiment_id)

    def _send(self) -> None:
        """Sends what is in the queue, as much as there is at a time, until it ends with None."""
        try:
            while (metrics := self._queue.get()) is not None:
                while len(metrics) < METRICS_OF_A_CALL:
                    try:
                        more = self._queue.get_nowait()
                    except Empty:
                        break
                    if more is None:
                        self._queue.put(None)
                        break
                    metrics += more
                self._log_batch(metrics)
        except Exception as error:  # whatever it is: `log` and `close` raise it
            self._error = error

    def _log_batch(self, metrics: list[Any]) -> None:
        for some in _parts(metrics, METRICS_OF_A_CALL):
            self._client.log_batch(self._id, metrics=some)


def _metrics(step: int, values: dict[str, float]) -> list[Any]:
    from mlflow.entities import Metric

    now_ms = int(time.time() * 1000)
    return [Metric(PROPER.sub("_", name), value, now_ms, step) for name, value in values.items()]


def _parts(items: list[Any], size: int) -> Iterator[list[Any]]:
    return (items[first : first + size] for first in range(0, len(items), size))


@contextmanager
def _few_tries() -> Iterator[None]:
    """A server that does not answer is given up on soon, unless the user has said when."""
    ours = {name: value for name, value in TRIES.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)
