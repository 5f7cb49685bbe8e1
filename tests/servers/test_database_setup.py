"""The job that makes PostgreSQL's databases and users, on a real PostgreSQL."""

from __future__ import annotations

import pytest
from data_plane import DataPlane
from pod_runner import PodError

JOB = "Job/semr-postgresql-setup"
USERS = ("mlflow", "flyte")


def passwords(plane: DataPlane) -> dict[str, str]:
    return plane.node.data("Secret", "semr-postgresql")


def ask(plane: DataPlane, user: str, database: str, statement: str) -> str:
    return plane.sql(user, passwords(plane)[f"{user}-password"], database, statement)


@pytest.mark.parametrize("user", USERS)
def test_a_user_owns_its_database(plane: DataPlane, user: str) -> None:
    ask(plane, user, user, "CREATE TABLE t (x int); INSERT INTO t VALUES (7)")
    assert ask(plane, user, user, "SELECT x FROM t; DROP TABLE t").splitlines()[0] == "7"
    owner = "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = current_database()"
    assert ask(plane, user, user, owner) == user


@pytest.mark.parametrize(("user", "other"), [USERS, USERS[::-1]])
def test_a_user_has_no_more_than_that(plane: DataPlane, user: str, other: str) -> None:
    with pytest.raises(PodError, match="does not have CONNECT privilege"):
        ask(plane, user, other, "SELECT 1")
    with pytest.raises(PodError, match="permission denied to create database"):
        ask(plane, user, user, "CREATE DATABASE another")
    with pytest.raises(PodError, match="permission denied to create role"):
        ask(plane, user, user, "CREATE ROLE another")
    assert ask(plane, user, user, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user") == "f"


@pytest.mark.parametrize("user", (*USERS, "postgres"))
def test_a_password_is_asked_for(plane: DataPlane, user: str) -> None:
    with pytest.raises(PodError, match="password authentication failed"):
        plane.sql(user, "guessed", "postgres", "SELECT 1")


def test_a_second_run_leaves_everything_as_it_is(plane: DataPlane) -> None:
    ask(plane, "mlflow", "mlflow", "CREATE TABLE kept (x int)")
    assert "databases and users are there" in plane.node.start(plane.pod(JOB)).wait()
    ask(plane, "mlflow", "mlflow", "DROP TABLE kept")


def test_a_changed_password_is_taken(plane: DataPlane) -> None:
    # With everything in it that a shell or SQL might read as its own.
    changed = """it's "$HOME" \\ `id` :name %s"""
    plane.node.start(plane.pod(JOB), environment={"FLYTE_PASSWORD": changed}).wait()
    assert plane.sql("flyte", changed, "flyte", "SELECT 1") == "1"
    with pytest.raises(PodError, match="password authentication failed"):
        ask(plane, "flyte", "flyte", "SELECT 1")
    plane.node.start(plane.pod(JOB)).wait()
    assert ask(plane, "flyte", "flyte", "SELECT 1") == "1"


def test_rows_survive_kill_9(plane: DataPlane) -> None:
    ask(plane, "mlflow", "mlflow", "CREATE TABLE survivor (x int); INSERT INTO survivor VALUES (1)")
    plane.kill("StatefulSet/semr-postgresql")
    plane.serve("StatefulSet/semr-postgresql")
    assert ask(plane, "mlflow", "mlflow", "SELECT x FROM survivor") == "1"
    ask(plane, "mlflow", "mlflow", "DROP TABLE survivor")


def test_helm_test_signs_in_as_each_user(plane: DataPlane) -> None:
    pod = plane.pod("Pod/semr-test-postgresql")
    said = plane.node.start(pod).wait()
    assert "mlflow" in said and "flyte" in said
    with pytest.raises(PodError, match="password authentication failed"):
        plane.node.start(pod, environment={"FLYTE_PASSWORD": "guessed"}).wait()
