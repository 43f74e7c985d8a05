"""What parts of a detector were called before still works, and warns."""

from __future__ import annotations

from detr_distill.detr import queries
from detr_distill.detr.queries.anchor_boxes import AnchorBoxQueries
from detr_distill.detr.queries.anchor_points import AnchorPointQueries
from detr_distill.engine.run_folder import differences

import pytest
from detectron2.modeling import build_model
from helpers.builders import small_cfg

EARLIER = {"MODEL__DETR__DECODER__NAME": "DabDecoder", "MODEL__DETR__QUERIES__NAME": "AnchorQueries"}
NOW = {**EARLIER, "MODEL__DETR__QUERIES__NAME": "AnchorBoxQueries"}


def test_anchor_queries_are_anchor_box_queries(tmp_path):
    with pytest.warns(FutureWarning, match="AnchorQueries is now called AnchorBoxQueries"):
        model = build_model(small_cfg(**EARLIER))
    assert type(model.queries) is AnchorBoxQueries
    with pytest.warns(FutureWarning, match="AnchorQueries is now called AnchorBoxQueries"):
        assert queries.AnchorQueries is AnchorBoxQueries
    with pytest.raises(AttributeError, match="has no attribute 'NoQueries'"):
        _ = queries.NoQueries
    (tmp_path / "config.yaml").write_text(small_cfg(**EARLIER).dump())
    assert differences(tmp_path, small_cfg(**NOW)) == {}, "a run that began under the earlier name goes on"


def test_the_kind_of_anchor_points_was_called_points():
    with pytest.warns(FutureWarning, match=r"AnchorPointQueries\(points=...\) is now kind_of_points=..."):
        made = AnchorPointQueries(num_queries=12, num_patterns=3, width=8, points="grid")
    assert made.kind_of_points == "grid" and made.points.shape == (4, 2)
