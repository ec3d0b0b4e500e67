"""The gates bite: a shape error in our code is seen in every test run."""

import pytest
import torch
from jaxtyping import TypeCheckError

from f3rm.semantics.similarity import make_query, similarity


def test_wrong_shapes_are_caught_by_the_hook():
    query = make_query(torch.eye(4)[:1])
    with pytest.raises(TypeCheckError):
        similarity("not a tensor", query)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeCheckError):
        make_query(torch.eye(4)[0])
