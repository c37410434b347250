"""Every YAML that is shipped composes, passes its own rules, and makes what it names."""

import pytest
import torch
from conftest import composed
from hydra.utils import instantiate
from omegaconf import OmegaConf

from bagnet_lightning.config import _image_files, digest, folder, leaves, plain, training_settings
from bagnet_lightning.errors import UserError
from bagnet_lightning.models.of_config import network_of
from bagnet_lightning.paths import CONF
from bagnet_lightning.rules import RULES, check

NEEDED = {"image_folder": ["data.root=x"], "timm": ["model.model_name=test_resnet"]}  # by a choice


def choices(group):
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@pytest.mark.parametrize("group", ["data", "model", "optim", "scheduler", "trainer", "logger", "recipe", "table1"])
def test_every_choice_composes_and_keeps_the_rules(group):
    assert choices(group)
    for choice in choices(group):
        config = composed(f"{group}={choice}", *NEEDED.get(choice, []))
        if config.model.pretrained is not True:
            check(config)
        OmegaConf.to_container(config, resolve=True)


@pytest.mark.parametrize("recipe", choices("recipe"))
@pytest.mark.parametrize("model", choices("model"))
def test_every_model_can_be_made(model, recipe):
    if model == "timm":
        pytest.importorskip("timm", reason="timm is an optional dependency")
    settings = ["model.width=0.25"] if model.startswith("bagnet") else []
    config = composed(f"recipe={recipe}", f"model={model}", *NEEDED.get(model, settings))
    assert network_of(config.model, 3)(torch.zeros(2, 3, 64, 64)).shape == (2, 3)


@pytest.mark.parametrize("optim", choices("optim"))
@pytest.mark.parametrize("scheduler", choices("scheduler"))
def test_every_optimizer_and_scheduler_can_be_made(optim, scheduler):
    config = composed(f"optim={optim}", f"scheduler={scheduler}")
    optimizer = instantiate(config.optim)([torch.nn.Parameter(torch.zeros(3))])
    length = {"onecycle": {"total_steps": 10}, "cosine": {"T_max": 10}}.get(scheduler, {})
    instantiate({k: v for k, v in config.scheduler.items() if k != "interval"})(optimizer, **length)


def test_the_paper_settings_are_the_defaults():
    config = composed("optim=sgd")
    assert (config.trainer.max_epochs, config.data.batch_size, config.optim.lr) == (15, 100, 0.001)
    assert (config.scheduler.step_size, config.scheduler.gamma) == (7, 0.1)
    assert (config.data.crop_padding, config.data.flip, config.data.normalize) == (0, True, False)
    assert (config.optim.momentum, config.optim.weight_decay, config.label_smoothing) == (0.9, 0, 0)
    assert (config.model.pad, config.model.stem_momentum, config.model.width) == (0, 0.001, 1)
    assert config == composed("optim=sgd", "recipe=paper")
    adam = composed()
    assert (adam.optim._target_, adam.optim.lr, adam.optim.weight_decay) == ("torch.optim.Adam", 0.001, 0)
    adadelta = composed("optim=adadelta")
    assert adadelta.optim.lr == 1.0
    assert adadelta.scheduler._target_.endswith("ConstantLR")
    assert composed("optim=adadelta", "scheduler=cosine").scheduler._target_.endswith("CosineAnnealingLR")


def test_the_modern_recipe_is_muon_in_one_cycle_with_smoothed_labels():
    config = composed("recipe=modern", "optim.lr=0.3")
    assert (config.label_smoothing, config.model.zero_init, config.data.batch_size) == (0.1, True, 128)
    assert config.optim._target_.endswith(".Muon")
    assert config.scheduler._target_.endswith(".OneCycleLR")
    assert config.scheduler.max_lr == 0.3
    recipe = composed("recipe=modern")
    assert (recipe.optim.lr, recipe.optim.momentum, recipe.optim.weight_decay) == (0.05, 0.95, 0.01)
    assert (recipe.scheduler.pct_start, recipe.model.stem_momentum) == (0.3, 0.1)


def test_nothing_else_changes_the_papers_training():
    config = composed("optim=sgd")
    assert (config.optim.nesterov, composed("optim=adadelta").optim.weight_decay) == (False, 0)
    assert (config.weight_average, config.class_weights, config.patch_loss, config.loss) == (None, None, 0, {})
    trainer = config.trainer
    assert (trainer.gradient_clip_val, trainer.accumulate_grad_batches, trainer.sync_batchnorm) == (None, 1, True)
    assert (config.monitor, config.data.holdout, config.callbacks) == ("val_accuracy", 0, {})


def test_what_the_results_of_related_systems_were_made_with():
    tile2vec, simclr = (composed(f"method={name}", name="pretrain") for name in ("tile2vec", "simclr"))
    assert (tile2vec.method.margin, tile2vec.method.l2) == (10, 0.07)
    assert (simclr.method.temperature, simclr.method.projection) == (0.5, 128)
    assert (tile2vec.tiles.size, tile2vec.tiles.radius) == (33, 31)
    assert (tile2vec.bagnet.stem_momentum, tile2vec.bagnet.zero_init) == (0.1, True)
    em = composed("head=em", name="classical").em
    assert (em.rounds, em.trainer.max_epochs, em.optim.lr) == (5, 5, 0.0001)
    assert (em.image_percentile, em.class_percentile, em.sigma) == (30, 30, 0.7)


def test_what_the_docs_promise_of_defaults():
    assert composed().checkpoint == {"every_n_minutes": 10, "every_n_steps": None}
    precisions = {card: composed(f"trainer={card}").trainer.precision for card in ("t4", "k80")}
    assert precisions == {"t4": "16-mixed", "k80": "32-true"}
    for encoding in ("bow", "fisher"):
        config = composed(f"encoding={encoding}", name="classical").encoding
        assert (config.power, config.norm) == (0.5, "l2")  # Hellinger's kernel


def test_only_the_rows_with_imagenet_weights_normalise():
    for row in choices("table1"):
        config = composed(f"table1={row}")
        assert config.data.normalize == ("imagenet" if config.model.pretrained else False)


def test_the_modern_recipe_is_a_default_that_can_be_changed():
    assert composed("recipe=modern").model.pad == 1
    assert composed("recipe=modern", "model.pad=0").model.pad == 0
    assert (composed("recipe=modern").data.crop_padding, composed("recipe=modern").data.normalize) == (4, True)


WRONG = {
    "config": [
        "seed=-1",
        "data.seed=10000000000",
        "trainer.max_epochs=0",
        "trainer.max_epochs=1.5",
        "trainer.precision=half",
        "trainer.devices=0",
        "trainer.num_nodes=0",
        "data.batch_size=many",
        "data.classes=0",
        "data.classes=[]",
        "data.holdout=1",
        "data.flip=sometimes",
        "data.group='patient('",
        "data.device_resident=often",
        "trainer.compile=yes",
        "trainer.cuda_graph=2",
        "optim.lr=0",
        "optim.lr=nan",
        "optim.momentum=2",
        "model.width=0.1",
        "model.pad=-1",
        "model.zero_init=maybe",
        "model.pretrained=/no/such/file",
        "scheduler.step_size=0",
        "sweep=a/b",
        "label_smoothing=-0.1",
        "weight_average=1",
        "patch_loss=2",
        "callbacks=foo",
        "loss=foo",
    ],
    "classical": [
        "workers=0",
        "encoding.codebook.size=1.5",
        "encoding.power=0",
        "encoding.norm=l3",
        "classifier.kernel=rbf",
        "features.keypoints=1e11",
    ],
    "pretrain": [
        "splits=test",
        "tiles.size=3",
        "tiles.radius=0",
        "tiles.colour=2",
        "method.margin=0",
        "method.l2=-1",
    ],
}


@pytest.mark.parametrize(
    ("command", "mistake"), [(name, each) for name, mistakes in WRONG.items() for each in mistakes]
)
def test_wrong_values_are_refused_by_name(command, mistake):
    key = mistake.partition("=")[0]
    group_choices = ["optim=sgd", "data=image_folder", "data.root=."] if command == "config" else []
    with pytest.raises(UserError, match=rf"^{key}=.*: {key} must be "):
        check(composed(*group_choices, mistake, name=command))


def test_a_threshold_that_opencv_would_take_for_another_is_refused():
    check(composed("features=orb", "features.fast_threshold=255", name="classical"))
    with pytest.raises(UserError, match="from 1 to 255"):
        check(composed("features=orb", "features.fast_threshold=300", name="classical"))


@pytest.mark.parametrize("sizes", ["[0]", "4", "[]", "[4,true]"])
def test_wrong_bin_sizes_are_refused_by_name(sizes):
    check(composed("features=dense_sift", "features.bin_sizes=[4,6.5]", name="classical"))
    with pytest.raises(UserError, match=r"^features\.bin_sizes=.* must be a list of numbers from 1"):
        check(composed("features=dense_sift", f"features.bin_sizes={sizes}", name="classical"))


@pytest.mark.parametrize("method", choices("method"))
def test_every_method_of_pretraining_composes_and_normalises_as_train_does(method):
    config = composed(f"method={method}", name="pretrain")
    check(config)
    assert config.method.name == method
    assert instantiate(config.method).kinds in (1, 2, 3)
    assert config.data.normalize is composed().data.normalize
    assert config.tiles.colour == (0.5 if method == "simclr" else 0)
    assert digest(config) != digest(composed(f"method={method}", "splits=train+test", name="pretrain"))


def test_missing_values_are_asked_for():
    with pytest.raises(UserError, match=r"add data\.root=\.\.\."):
        check(composed("data=image_folder"))


@pytest.mark.parametrize("group", ["data", "features", "encoding", "classifier", "head", "related"])
def test_every_choice_of_a_system_composes_and_keeps_the_rules(group):
    for choice in choices(group):
        config = composed(f"{group}={choice}", *(["data.root=x"] if choice == "image_folder" else []), name="classical")
        check(config)
        OmegaConf.to_container(config, resolve=True)


def test_rules_are_of_keys_that_exist():
    groups = {
        "config": ("data", "model", "optim", "scheduler"),
        "classical": ("features", "encoding", "classifier", "head"),
        "pretrain": ("method",),
    }
    configs = [
        composed(f"{group}={choice}", *NEEDED.get(choice, []), name=name)
        for name, members in groups.items()
        for group in members
        for choice in choices(group)
    ]

    def exists(key):
        *parents, last = key.split(".")
        nodes = (OmegaConf.select(config, ".".join(parents)) if parents else config for config in configs)
        return any(node is not None and last in node for node in nodes)

    assert [key for key in RULES if not exists(key)] == []


def test_digest_is_of_what_is_trained():
    asked = digest(composed())
    assert len(asked) == 12
    for same in (
        "sweep=x",
        "fresh=true",
        "logger=wandb",
        "data.root=/elsewhere",
        "data.device_resident=false",
        "data.eval_batch_size=7",
        "trainer.compile=true",
    ):
        assert digest(composed(same)) == asked
        assert training_settings(plain(composed(same))) == training_settings(plain(composed()))
    assert digest(composed("trainer=ddp", "trainer.num_nodes=2")) == asked
    assert digest(composed("data.classes=['a, b',c]")) != digest(composed("data.classes=[a,'b, c']"))
    config = composed("data.holdout=0.1", "weight_average=0.9")
    assert leaves(plain(config)).keys() - training_settings(plain(config)).keys() == {
        *("sweep", "fresh", "dry_run", "paper", "checkpoint.every_n_minutes", "checkpoint.every_n_steps"),
        *("data.root", "data.url", "data.device_resident", "data.eval_batch_size"),
        *("trainer.devices", "trainer.num_nodes", "trainer.compile", "trainer.fused_norm", "trainer.cuda_graph"),
        *(
            "batches.batch_size",
            "batches.crop_padding",
            "batches.flip",
            "batches.normalize",
            "bagnet.pad",
            "bagnet.stem_momentum",
            "bagnet.zero_init",
        ),
    }
    for other in (
        "seed=1",
        "trainer.sync_batchnorm=false",
        "optim=sgd",
        "optim.lr=0.01",
        "data.classes=10",
        "trainer.max_epochs=5",
    ):
        assert digest(composed(other)) != asked
    assert digest(composed("model=bagnet17", "optim=adam")) == asked
    assert digest(composed("bagnet.pad=1")) == digest(composed("model.pad=1")) != asked
    assert digest(composed("model=resnet18", "bagnet.pad=1")) == digest(composed("model=resnet18"))
    own = composed("optim._target_=mine.SGD")
    assert digest(own) != asked
    assert training_settings(plain(own)).items() - training_settings(plain(composed())).items() == {
        ("optim._target_", "mine.SGD")
    }
    tiles = [digest(composed(f"data.eval_batch_size={n}", "method=tile2vec", name="pretrain")) for n in (6, 7)]
    assert tiles[0] != tiles[1]  # distant ones are drawn from the batch


def test_weights_that_are_started_from_count_by_their_content_and_not_their_path(tmp_path):
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).write_bytes(content)
    a, b, c = (digest(composed(f"model.pretrained={tmp_path / name}")) for name in "abc")
    assert a == b != c
    assert len({a, digest(composed()), digest(composed("model.pretrained=true"))}) == 3


def test_a_folder_of_images_counts_by_its_files_and_not_their_place(tmp_path):
    def asked(name: str) -> str:
        return digest(composed("data=image_folder", f"data.root={tmp_path / name}"))

    for name, classes in (("a", "xy"), ("b", "xy"), ("c", "xz"), ("d", "xy")):
        for split in ("train", "val"):
            for one in classes:
                (tmp_path / name / split / one).mkdir(parents=True)
                (tmp_path / name / split / one / "1.png").write_bytes(b"1")
    (tmp_path / "b/.bagnet_store-64").mkdir()
    (tmp_path / "d/train/x/2.png").write_bytes(b"2")
    (tmp_path / "a/train/x/notes.txt").write_bytes(b"no image")
    (tmp_path / "a/train/.ipynb_checkpoints").mkdir()
    (tmp_path / "a/train/.ipynb_checkpoints/1.png").write_bytes(b"of another program")
    (tmp_path / "e/train").mkdir(parents=True)
    for linked in ("train/x", "train/y", "val"):
        (tmp_path / "e" / linked).symlink_to(tmp_path / "a" / linked)
    assert asked("a") == asked("b") == asked("e")
    assert len({asked(name) for name in "acd"}) == 3
    (tmp_path / "f").mkdir()
    (tmp_path / "f/train").symlink_to(tmp_path / "a/train")  # and no val
    assert len({asked(name) for name in "acdf"}) == 4
    (tmp_path / "a/train/x/1.png").write_bytes(b"another")
    _image_files.cache_clear()  # as in the next command
    assert asked("a") != asked("b")


def test_the_digest_of_a_system_is_of_what_decides_its_scores():
    asked = digest(composed(name="classical"))
    for same in ("workers=3", "cache=elsewhere", "features.label=x", "dry_run=true"):
        assert digest(composed(same, name="classical")) == asked
    for other in ("features=orb", "encoding.codebook.size=7", "classifier=additive", "seed=1"):
        assert digest(composed(other, name="classical")) != asked
    em = ["head=em", "em.checkpoint.every_n_minutes=1", "em.trainer.compile=auto"]
    assert digest(composed(*em, name="classical")) == digest(composed("head=em", name="classical"))
    assert folder(em) == "em"


def test_the_training_of_em_keeps_the_rules_of_a_training():
    config = composed("head=em", "checkpoint=x.ckpt", "em.trainer.compile=maybe", name="classical")
    with pytest.raises(UserError, match=r"em\.trainer\.compile must be auto, true"):
        check(config)


def test_the_number_of_devices_counts_where_each_has_batch_statistics_of_its_own():
    two = ["trainer=ddp", "trainer.devices=2"]
    assert digest(composed(*two)) == digest(composed("trainer=ddp", "trainer.devices=4"))
    alone = [digest(composed(*two[:1], f"trainer.devices={n}", "trainer.sync_batchnorm=false")) for n in (2, 4)]
    assert alone[0] != alone[1]


def test_folders_are_named_by_what_was_asked():
    assert folder(["optim=adam", "model=bagnet9"]) == folder(["model=bagnet9", "optim=adam"]) == "bagnet9_adam"
    assert folder(["trainer=ddp", "trainer.devices=4"]) == folder([]) == "defaults"
    assert folder(["model=bagnet9", "+trainer.max_steps=3", "optim.lr=0.01"]) == "bagnet9_lr-0.01_max_steps-3"
    assert folder(["checkpoint.every_n_minutes=2", "logger.project=p", "optim=adam"]) == "adam"
    assert folder(["classifier=additive", "workers=2", "features=sift", "cache=/c"]) == "sift_additive"
    assert folder(["sweep=x", "fresh=true", "data.root=/a/b", "logger=csv", "seed=1"]) == "seed-1"
    hydra_safe = folder(["model.pretrained=/a b/c,d='x'.pt", "data.classes=[n01,n02]"])
    assert not set(hydra_safe) - set("abcdefghijklmnopqrstuvwxyz0123456789-_.+")
    long = folder([f"a.key{i}={i}" for i in range(60)])
    assert len(long) <= 120
    assert len(folder([f"data.classes=[{'狗,' * 60}]"]).encode()) <= 120
    assert long != folder([f"a.key{i}={i + 1}" for i in range(60)])
