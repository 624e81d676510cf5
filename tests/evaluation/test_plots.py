import numpy as np
import pytest
from PIL import Image
from scenes import fill, judged, perfect, scene

from detrlab import palette
from detrlab.errors import UserError
from detrlab.evaluation import plots
from detrlab.evaluation.analysis import analyse
from detrlab.evaluation.coco import Evaluator
from detrlab.evaluation.folder import hard_images
from detrlab.figures import save_figure


def test_every_plot_is_written_and_equal_results_give_equal_files(tmp_path):
    analysis = analyse(*judged())
    plots.save(analysis, tmp_path)
    names = {"precision_recall", "sizes", "confusion", "tide", "calibration"}
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.png" for name in names}
    for name in ("a.svg", "b.svg"):
        save_figure(plots.tide(analysis), tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


@pytest.mark.parametrize(
    "options",
    [{"found": 0.0, "false_alarms": 0}, {"num_classes": 30, "num_images": 8}, {"crowd_share": 1.0}],
)
def test_odd_results_can_be_drawn(tmp_path, options):
    plots.save(analyse(*judged(1, **options)), tmp_path)


@pytest.mark.filterwarnings("ignore:Glyph")
def test_names_are_never_taken_for_formulas(tmp_path):
    truth, results = scene(2)
    for category, name in zip(truth["categories"], ["$x$", "a_b^c", "<b>&", "口罩"], strict=True):
        category["name"] = name
    evaluator = fill(Evaluator(truth), results)
    figure = plots.confusion(analyse(truth, evaluator.detected()))
    save_figure(figure, tmp_path / "confusion.svg")
    text = (tmp_path / "confusion.svg").read_text(encoding="utf-8")
    assert "$x$" in text
    assert "&lt;b&gt;&amp;" in text


def test_drawing_leaves_no_trace_in_matplotlib(tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    save_figure(plots.sizes(analyse(*judged(3))), tmp_path / "sizes.png")
    assert dict(matplotlib.rcParams) == before
    pyplot = __import__("sys").modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="could not be written"):
        plots.save(analyse(*judged(4, num_images=2)), tmp_path / "file")


def test_layers_are_drawn():
    truth, detected = judged(5)
    metrics = []
    for share in (0.3, 0.6, 1.0):
        evaluator = Evaluator(truth)
        evaluator.extend(detected.select(np.arange(len(detected)) % 10 < 10 * share))
        metrics.append(evaluator.metrics())
    axes = plots.layer_metrics(metrics).axes[0]
    last = [line.get_ydata()[-1] for line in axes.lines]
    assert last == pytest.approx(
        [100 * getattr(metrics[-1], name) for name in ("ap50", "ap", "ap75", "ap_small")]
    )


def test_hard_images_are_those_with_mistakes():
    truth, detected = judged(6)
    analysis = analyse(truth, detected)
    asked = []

    def read(index):
        asked.append(index)
        return Image.new("RGB", (640, 480), "gray")

    pixels = np.asarray(hard_images(truth, detected, analysis, read, count=4))
    worst = [truth.image_index[v.image_id] for v in analysis.images if v.mistakes][:4]
    assert asked == worst
    for colour in (palette.MISSED, palette.FALSE_ALARM, palette.FOUND):  # below the legend
        drawn = (pixels[30:] == palette.from_hex(colour)).all(axis=-1)
        assert drawn.sum() > 500


def test_a_flawless_detector_gives_an_empty_sheet():
    truth, _ = scene(7, crowd_share=0.0)
    evaluator = fill(Evaluator(truth), perfect(truth))
    detected = evaluator.detected()
    sheet = hard_images(evaluator.truth, detected, analyse(truth, detected), lambda _: None)
    assert sheet.height < 60
