from akssl_core.errors import (
    AksslError,
    ConfigError,
    DataError,
    PluginError,
    RunDirError,
    did_you_mean,
    plain,
    suggest,
)


def test_names_are_compared_without_case_and_separators():
    assert plain("MoCo-v2") == plain("moco_v2") == plain("MoCo V2") == "mocov2"


def test_suggestion_is_the_nearest_name_as_it_is_written():
    assert suggest("simsaim", ["swav", "simsiam", "simclr"]) == "simsiam"
    assert suggest("barlow twins", ["Barlow-Twins", "byol"]) == "Barlow-Twins"
    assert suggest("temp", ["size", "temperature"]) == "temperature", "the beginning of a name is enough"
    assert suggest("zzz", ["swav", "simsiam"]) is None


def test_did_you_mean_is_a_sentence_or_nothing():
    assert did_you_mean("temprature", ["temperature"]) == " Did you mean 'temperature'?"
    assert did_you_mean("zzz", ["temperature"]) == ""


def test_every_error_of_a_user_is_one_family_and_also_a_usual_python_error():
    assert all(issubclass(e, AksslError) for e in (ConfigError, DataError, PluginError, RunDirError))
    assert issubclass(ConfigError, ValueError)
    assert issubclass(RunDirError, OSError)
