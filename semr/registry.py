"""The model registry: register a run's model, move the aliases champion / challenger / previous, keep lineage in tags.

A version becomes visible in one request that carries all of its tags, and a run is registered once: asking again after a
failure at any point completes what is there instead of making a second version.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import RestException
from mlflow.tracking import MlflowClient

from semr import tracking
from semr.errors import InvalidInputError, SemrError
from semr.settings import Settings, get_settings

CHAMPION = "champion"
CHALLENGER = "challenger"
PREVIOUS = "previous"

_SYSTEM_METRICS_PREFIX = "system/"


class ModelNotFoundError(InvalidInputError):
    """There is no such model, version or alias in the registry."""


class RegistryError(SemrError):
    """The registry answered, but what it holds does not allow the operation."""


@dataclass(frozen=True)
class ModelVersionRef:
    """A model version by reference: what flows between the steps of a workflow, in place of the model itself.

    Attributes:
        name: registered model.
        version: its number, as MLflow counts, as a string.
        uri: `models:/NAME/VERSION`.
        run_id: MLflow run that trained it.
        metrics: last values of the run's own metrics (without system metrics).
    """

    name: str
    version: str
    uri: str
    run_id: str
    metrics: dict[str, float]


@dataclass
class Registry:
    """The registry of one MLflow server. Every method raises `DependencyUnavailableError` when the server is away."""

    settings: Settings = field(default_factory=get_settings)

    def register(
        self, run_id: str, name: str, *, tags: Mapping[str, str] | None = None, alias: str | None = CHALLENGER
    ) -> ModelVersionRef:
        """Register the model that the run `run_id` logged last as the next version of `name`.

        Args:
            run_id: MLflow run with a logged model.
            name: registered model, made when missing.
            tags: lineage, such as the dataset version and the trigger.
            alias: alias to set on the version, None for none.

        Raises:
            ModelNotFoundError: no such run.
            RegistryError: the run has logged no model or has not finished.
        """
        with tracking.named_errors(self.settings):
            client = self._client()
            run = self._run(client, run_id)
            version = next(iter(self._versions_of_run(client, name, run_id)), None)
            if version is None:
                model_uri = _logged_model_uri(run)
                _make_model(client, name)
                # Not `mlflow.register_model`: it prints, and waits up to five minutes for what is done already.
                version = client.create_model_version(
                    name,
                    source=model_uri,
                    run_id=run_id,
                    tags=dict(tags or {}),
                    model_id=model_uri.rpartition("/")[2],
                    await_creation_for=0,
                )
                version = self._only_version_of_run(client, name, run_id, version)
            if alias is not None:
                _set_alias(client, name, alias, str(version.version))
            return self._ref(client, version)

    def get(self, name: str, version_or_alias: str) -> ModelVersionRef:
        """The version of `name` by its number or by an alias.

        Raises:
            ModelNotFoundError: there is none.
        """
        with tracking.named_errors(self.settings):
            client = self._client()
            return self._ref(client, self._find(client, name, version_or_alias))

    def find(self, name: str, version_or_alias: str) -> ModelVersionRef | None:
        """Like `get`, but None when there is none."""
        try:
            return self.get(name, version_or_alias)
        except ModelNotFoundError:
            return None

    def versions(self, name: str) -> list[ModelVersionRef]:
        """All versions of `name`, oldest first; empty when the model does not exist."""
        with tracking.named_errors(self.settings):
            client = self._client()
            found = client.search_model_versions(f"name = '{_checked_name(name)}'")
            return [self._ref(client, version) for version in sorted(found, key=lambda each: int(each.version))]

    def aliases(self, name: str) -> dict[str, str]:
        """Alias to version number of the model `name`.

        Raises:
            ModelNotFoundError: no such model.
        """
        with tracking.named_errors(self.settings):
            try:
                model = self._client().get_registered_model(name)
            except RestException as error:
                raise _not_found(error, f"There is no registered model {name!r}.") from error
            return {alias: str(version) for alias, version in model.aliases.items()}

    def promote(self, ref: ModelVersionRef) -> ModelVersionRef | None:
        """Make `ref` the champion; the version that was champion becomes `previous` and is returned (None if none was).

        Promoting the champion again changes nothing, so `previous` survives a repeated call.
        """
        with tracking.named_errors(self.settings):
            client = self._client()
            aliases = self.aliases(ref.name)
            current = aliases.get(CHAMPION)
            if current == ref.version:
                return None
            # `previous` first: a caller that dies in between leaves a champion that is also `previous`, never none.
            if current is not None:
                _set_alias(client, ref.name, PREVIOUS, current)
            _set_alias(client, ref.name, CHAMPION, ref.version)
            if aliases.get(CHALLENGER) == ref.version:
                client.delete_registered_model_alias(ref.name, CHALLENGER)
            return self.get(ref.name, current) if current is not None else None

    def roll_back(self, name: str, version: str | None = None) -> ModelVersionRef:
        """Make an earlier version the champion again: `version`, else the one with the alias `previous`.

        Raises:
            ModelNotFoundError: there is no such version, or no `previous`.
        """
        target = self.get(name, version or PREVIOUS)
        self.promote(target)
        return target

    def take_back(self, failed: ModelVersionRef, champion: ModelVersionRef) -> None:
        """Undo `promote(failed)`: `champion` is champion again, and `failed` is no version that a rollback would choose."""
        with tracking.named_errors(self.settings):
            client = self._client()
            client.set_registered_model_alias(champion.name, CHAMPION, champion.version)
            for alias in (PREVIOUS, CHALLENGER):
                if self.aliases(champion.name).get(alias) in (failed.version, champion.version):
                    client.delete_registered_model_alias(champion.name, alias)

    def set_tags(self, ref: ModelVersionRef, tags: Mapping[str, str]) -> None:
        """Add tags to a version; a tag of the same name is replaced."""
        with tracking.named_errors(self.settings):
            client = self._client()
            for key, value in tags.items():
                client.set_model_version_tag(ref.name, ref.version, key, value)

    def tags(self, ref: ModelVersionRef) -> dict[str, str]:
        """The tags of a version."""
        with tracking.named_errors(self.settings):
            return dict(self._find(self._client(), ref.name, ref.version).tags)

    def _client(self) -> MlflowClient:
        return tracking.connect(self.settings)

    @staticmethod
    def _run(client: MlflowClient, run_id: str) -> Run:
        try:
            return client.get_run(run_id)
        except RestException as error:
            raise _not_found(error, f"There is no MLflow run {run_id!r}.") from error

    @staticmethod
    def _find(client: MlflowClient, name: str, version_or_alias: str) -> ModelVersion:
        try:
            if version_or_alias.isdigit():
                return client.get_model_version(name, version_or_alias)
            return client.get_model_version_by_alias(name, version_or_alias)
        except RestException as error:
            kind = "version" if version_or_alias.isdigit() else "alias"
            raise _not_found(error, f"The registry has no model {name!r} with {kind} {version_or_alias!r}.") from error

    @staticmethod
    def _versions_of_run(client: MlflowClient, name: str, run_id: str) -> list[ModelVersion]:
        found = client.search_model_versions(f"name = '{_checked_name(name)}' and run_id = '{run_id}'")
        return sorted(found, key=lambda each: int(each.version))

    def _only_version_of_run(self, client: MlflowClient, name: str, run_id: str, created: ModelVersion) -> ModelVersion:
        """The first version of the run; later ones are removed.

        When the connection breaks after the server has made a version and before it answered, MLflow's client asks again
        and gets a second one.
        """
        first, *copies = self._versions_of_run(client, name, run_id) or [created]
        for copy in copies:
            try:
                client.delete_model_version(name, str(copy.version))
            except RestException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # somebody else has removed it
                    raise
        return first

    @staticmethod
    def _ref(client: MlflowClient, version: ModelVersion) -> ModelVersionRef:
        run_id = str(version.run_id)
        metrics = client.get_run(run_id).data.metrics
        return ModelVersionRef(
            name=str(version.name),
            version=str(version.version),
            uri=f"models:/{version.name}/{version.version}",
            run_id=run_id,
            metrics={key: float(value) for key, value in metrics.items() if not key.startswith(_SYSTEM_METRICS_PREFIX)},
        )


def _make_model(client: MlflowClient, name: str) -> None:
    try:
        client.create_registered_model(name)
    except RestException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _set_alias(client: MlflowClient, name: str, alias: str, version: str) -> None:
    """Point `alias` to `version`; the server answers BAD_REQUEST when another caller sets a new alias at the same moment."""
    for is_last in (False, False, True):
        try:
            client.set_registered_model_alias(name, alias, version)
        except RestException as error:
            if is_last or error.error_code != "BAD_REQUEST":
                raise
        else:
            return


def _logged_model_uri(run: Run) -> str:
    if run.info.status not in ("FINISHED", "RUNNING"):
        raise RegistryError(
            f"Run {run.info.run_id} is {run.info.status}: only the model of a finished run is registered."
        )
    outputs = run.outputs.model_outputs if run.outputs else []
    if not outputs:
        raise RegistryError(f"Run {run.info.run_id} has logged no model, so there is nothing to register.")
    newest = max(outputs, key=lambda output: output.step)
    return f"models:/{newest.model_id}"


def _checked_name(name: str) -> str:
    if not name or any(character in name for character in "'\"`/:."):
        raise InvalidInputError(f"{name!r} cannot name a model: use letters, digits, '-' and '_'.")
    return name


def _not_found(error: RestException, sentence: str) -> Exception:
    """`ModelNotFoundError` with `sentence` when MLflow says that a thing is missing, else the error itself."""
    missing = error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
    return ModelNotFoundError(sentence) if missing else error
