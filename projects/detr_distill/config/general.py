"""Keys of data, solver and evaluation, which no plug-in reads."""

from __future__ import annotations

from .keys import Key, declare
from .ranges import COUNT, PROPER_SHARE, WHOLE, Words

declare(
    __name__,
    {
        "DATASETS.REGISTER": Key((), "COCO-format sets to register: `[name, annotation file, image folder]` each"),
        "DATASETS.BAD_BOXES": Key(
            "error",
            'boxes without area or outside their image: `"error"` names them and stops, `"fix"` cuts them to the '
            "image, drops those without area, and warns. More than 5 % outside are refused: another convention",
            Words("error", "fix"),
        ),
        "DATALOADER.FILTER_EMPTY_ANNOTATIONS": Key(
            False, "drop training images without objects (detectron2's own default is `True`)"
        ),
        "DATALOADER.RANDOM_SUBSET_RATIO": Key(
            1.0,
            "share of the training images that `DATALOADER.SAMPLER_TRAIN RandomSubsetTrainingSampler` draws once, by "
            "`SEED`, and trains on (a key of detectron2's main branch)",
            PROPER_SHARE,
        ),
        "INPUT.MAPPER": Key(
            "detr",
            '`"detr"`: DETR\'s augmentation on OpenCV; `"detectron2"`: detectron2\'s `DatasetMapper`',
            Words("detr", "detectron2"),
        ),
        "INPUT.CROP.RESIZE": Key(
            (400, 500, 600), "short sides in pixels, to one of which an image is brought before it is cropped", COUNT
        ),
    },
)
declare(
    __name__,
    {
        "SOLVER.OPTIMIZER": Key("SGD", 'or `"AdamW"`, which all shipped configurations choose', Words("AdamW", "SGD")),
        "SOLVER.LR_FACTORS": Key(
            (),
            "`[regular expression, factor]` pairs: the first expression found in a parameter's name scales its "
            "learning rate; one that finds nothing is an error",
        ),
        "SOLVER.FREEZE": Key(
            (),
            "`[regular expression, iteration]` pairs: the parameters found in the expression train from that iteration "
            "on; a number below 1 is a fraction of `SOLVER.MAX_ITER`",
        ),
        "SOLVER.ACCUMULATE": Key(
            1,
            "forward-backward passes of one optimizer step; `SOLVER.IMS_PER_BATCH` counts the images of one pass",
            COUNT,
        ),
        "SOLVER.CAPTURE": Key(
            False,
            "forward and backward pass as one CUDA graph for each padded size of `SOLVER.CAPTURE_SIZES`: no Python "
            "runs between kernels; what cannot be captured runs as without it, and says so once",
        ),
        "SOLVER.CAPTURE_SIZES": Key(
            (),
            "`[height, width]` in pixels; a batch is padded to the smallest that holds its images. Few: each has a "
            "graph, made in its third step",
        ),
        "SOLVER.CAPTURE_OBJECTS": Key(
            100, "objects an image that captured steps have room for; an image with more is not captured", COUNT
        ),
        "SOLVER.COMPILE": Key(
            False,
            "the backbones of student and teacher through `torch.compile`, for detectors that cannot be captured; "
            "results differ in the last digits",
        ),
        "SOLVER.CHECKPOINT_KEEP": Key(
            0, "checkpoints `model_<iteration>.pth` that stay on disk, the newest; 0 keeps all", WHOLE
        ),
        "SOLVER.AMP.DTYPE": Key(
            "float16",
            'with `SOLVER.AMP.ENABLED True`: `"float16"` (loss scaling, CUDA only) or `"bfloat16"`',
            Words("float16", "bfloat16"),
        ),
        "TEST.BEST_METRIC": Key(
            "bbox/AP",
            "metric whose highest value keeps `model_best.pth`; empty keeps none. With several test sets it is of the "
            'first that has it; `"NAME/bbox/AP"` names another',
        ),
    },
)
