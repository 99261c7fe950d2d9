"""The embedded tasks: real data that `pip install` brings along, and scores for data of one's own."""

from collections.abc import Callable, Iterable

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from . import nets, store
from .task import Task, inputs


def accuracy(batches: Iterable) -> Callable[[nn.Module], float]:
    """A score for classifiers: the percentage of held-out `(x, y)` batches that `model(x).argmax(1)` gets right."""

    def score(model: nn.Module) -> float:
        place = next(model.parameters()).device
        right = seen = 0
        for batch in batches:
            x, y = inputs(batch).to(place), batch[1].to(place)
            right += int((model(x).argmax(1) == y).sum())
            seen += len(y)
        if not seen:
            raise ValueError("the held-out batches are empty: accuracy needs at least one picture")
        return 100 * right / seen

    return score


def shuffled(x: Tensor, y: Tensor, size: int = 64) -> DataLoader:
    """Batches of two tensors in a new order each pass, drawn from torch's global generator; the odd rest is dropped."""
    data = TensorDataset(x, y)
    return DataLoader(data, sampler=BatchSampler(RandomSampler(data), size, drop_last=True), batch_size=None)


def digits(model: nn.Module | None = None, batch_size: int = 64) -> Task:
    """Handwritten digits (scikit-learn's, UCI): 1,297 pictures to learn from, 500 held out; 1 x 8 x 8, in [-0.5, 0.5].

    The model, unless given, is a ResNet-20 trained on the 1,297 (`data/digits`).
    """
    train, test = digits_data()
    if model is None:
        model = nets.resnet_cifar(20, channels=1)
        model.load_state_dict(load_file(store.artefact("digits/resnet20.safetensors")))
    score = accuracy([test])
    return Task(model=model, batches=shuffled(*train, batch_size), score=score, example=test[0][:1], name="digits")


def digits_data() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The digits as ((x, y), (x, y)) for training and held out, split once and for all, stratified by class."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=500, stratify=y, random_state=0)
    pictures = [torch.tensor(part, dtype=torch.float32).view(-1, 1, 8, 8) / 16 - 0.5 for part in (x_train, x_test)]
    return (pictures[0], torch.tensor(y_train)), (pictures[1], torch.tensor(y_test))
