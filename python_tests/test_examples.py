"""The examples run, each where its library is installed, and do what their first lines say."""

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"
needs_apt = pytest.mark.skipif(shutil.which("apt-cache") is None, reason="reads the package list of Debian or Ubuntu")


def example(name: str, *libraries: str) -> ModuleType:
    for library in libraries:
        pytest.importorskip(library, reason=f"examples/{name}.py is for {library}, which is not installed")
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def copy_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(before: dict[str, torch.Tensor], model: torch.nn.Module) -> bool:
    return all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())


def test_metric_learning_keeps_the_old_gallery_searchable() -> None:
    hits = example("metric_learning", "pytorch_metric_learning", "mlxtend").main(steps=120)
    assert hits["old/old"] > 0.7
    assert hits["compatible/old"] > hits["plain/old"] + 0.4
    assert hits["compatible/compatible"] > hits["plain/plain"] - 0.05


def test_positive_congruent_keeps_the_old_models_answers() -> None:
    flips = example("positive_congruent", "mlxtend").main(epochs=4)
    plain, distilled = flips["plain"], flips["focal distillation"]
    assert plain.error_old == distilled.error_old
    assert distilled.nfr < plain.nfr
    assert distilled.error_new < plain.error_old


# Lightning's own use of what torch deprecates, and its advice on loaders, files and modes.
@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated")
@pytest.mark.filterwarnings("ignore:The .*dataloader.* does not have many workers")
@pytest.mark.filterwarnings("ignore:Found .* module.s. in eval mode at the start of training")
@pytest.mark.filterwarnings("ignore:`weights_only` was not set")
def test_lightning_trains_the_new_model_alone_and_saves_it_alone(tmp_path: Path) -> None:
    module = example("lightning_module", "lightning")
    old = module.Classifier(2)
    new = module.Classifier(4, old=old, beta=1.0)
    new.train()
    assert not old.training
    before, start = copy_of(old), copy_of(new.net)
    images = module.TensorDataset(torch.rand(64, 1, 28, 28), torch.arange(64) % 10)
    again = module.fit(new, images, images, 1, str(tmp_path), 0)
    assert same(before, old)
    assert not same(start, new.net)
    assert all(parameter.grad is None for parameter in old.parameters())
    saved = torch.load(tmp_path / "model.ckpt", weights_only=True)["state_dict"]
    assert saved
    assert not [name for name in saved if name.startswith("old.")]
    assert same(copy_of(new.net), again.net)
    assert same(before, again.old)
    assert again.hparams.beta == 1.0


@needs_apt
def test_hf_trainer_makes_one_large_batch_of_unequal_parts(tmp_path: Path) -> None:
    module = example("hf_trainer", "transformers", "accelerate")
    rows = module.load_rows(0)[:40]
    old = module.TextClassifier(8, seed=0)
    before = copy_of(old)
    steps = []
    for batch, parts in ((40, 1), (16, 3)):  # 40 rows as 16 + 16 + 8
        settings = module.TrainingArguments(
            str(tmp_path),
            max_steps=1,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=parts,
            learning_rate=1.0,
            optim="sgd",
            max_grad_norm=0.0,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        )
        new = module.TextClassifier(8, seed=1)
        new.head[0].p = 0.0  # no dropout, so that both ways see the same
        start = copy_of(new)
        module.SuccessorTrainer(new, settings, train_dataset=rows, old=old, loss_options={"temperature": 4.0}).train()
        steps.append({name: value - start[name] for name, value in new.state_dict().items()})
    assert same(before, old)
    assert max(step.abs().max() for step in steps[0].values()) > 1e-3
    for name, step in steps[0].items():
        torch.testing.assert_close(steps[1][name], step, rtol=1e-3, atol=1e-5, msg=name)


def test_sentence_embeddings_are_pulled_towards_their_rows_of_the_old_gallery() -> None:
    module = example("sentence_embeddings", "sentence_transformers", "datasets")

    class Encoder(torch.nn.Linear):
        def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {"sentence_embedding": super().forward(features["x"])}

    torch.manual_seed(0)
    gallery, labels = torch.randn(50, 8), torch.arange(16)
    columns = [{"x": torch.randn(16, 8)}, {"x": torch.randn(16, 8)}]
    closeness = {}
    for weight in (0.0, 1.0):
        torch.manual_seed(1)
        model = Encoder(8, 8)
        loss = module.CompatibleLoss(model, gallery, weight)
        assert {id(p) for p in loss.parameters()} == {id(p) for p in model.parameters()}
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        for _ in range(50):
            optimizer.zero_grad()
            loss(columns, labels).backward()
            optimizer.step()
        with torch.no_grad():
            new = torch.cat([model(column)["sentence_embedding"] for column in columns])
        closeness[weight] = torch.cosine_similarity(new, gallery[labels].repeat(2, 1)).mean()
    assert closeness[1.0] > closeness[0.0] + 0.2
