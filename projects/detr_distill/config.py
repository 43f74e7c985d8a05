"""Every configuration key that detr_distill adds to detectron2's, with its default."""

from __future__ import annotations

from detectron2.config import CfgNode


def add_detr_distill_config(cfg: CfgNode) -> None:
    """Adds this project's keys to a detectron2 configuration, in place.

    Args:
        cfg: what ``detectron2.config.get_cfg()`` returns.
    """
    _add_data_config(cfg)
    _add_solver_config(cfg)
    _add_detr_config(cfg)
    _add_distill_config(cfg)


def _add_data_config(cfg: CfgNode) -> None:
    # (name, annotation file, image folder) of each COCO-format set to register, so that no Python is needed.
    cfg.DATASETS.REGISTER = []
    # Boxes without area or outside their image: "error" names them; "fix" clips and drops them with a warning.
    cfg.DATASETS.BAD_BOXES = "error"
    # "detr": this project's augmentation and loader order; "detectron2": detectron2's own mapper.
    cfg.INPUT.MAPPER = "detr"
    # Short sides, one of which the image is resized to before it is cropped (the second branch of DETR's augmentation).
    cfg.INPUT.CROP.RESIZE = [400, 500, 600]
    # DETR trains on images without objects too.
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False


def _add_solver_config(cfg: CfgNode) -> None:
    cfg.SOLVER.OPTIMIZER = "SGD"  # or "AdamW"
    # (regular expression, factor): the first expression found in a parameter's name scales its learning rate.
    cfg.SOLVER.LR_FACTORS = []
    # Forward-backward passes that share one optimiser step; IMS_PER_BATCH counts the images of one pass.
    cfg.SOLVER.ACCUMULATE = 1
    # Checkpoints model_<iteration>.pth that stay on disk, the newest; 0 keeps all.
    cfg.SOLVER.CHECKPOINT_KEEP = 0
    # Autocast type: "float16" (with loss scaling) or "bfloat16".
    cfg.SOLVER.AMP.DTYPE = "float16"
    # Metric that decides which checkpoint is kept as model_best.pth; empty keeps none.
    cfg.TEST.BEST_METRIC = "bbox/AP"


def _add_detr_config(cfg: CfgNode) -> None:
    # build_conv_backbone: channels of its stages, each of which halves the resolution.
    cfg.MODEL.CONV_BACKBONE = CfgNode()
    cfg.MODEL.CONV_BACKBONE.CHANNELS = [16, 32, 64]

    cfg.MODEL.DETR = CfgNode()
    node = cfg.MODEL.DETR
    node.NUM_CLASSES = 80
    node.NUM_QUERIES = 300
    node.HIDDEN_DIM = 256
    node.NUM_HEADS = 8
    node.FFN_DIM = 2048
    node.DROPOUT = 0.1
    node.IN_FEATURES = ["res5"]  # fine to coarse
    node.NUM_LEVELS = 4  # MultiLevelNeck: levels in all, the features' and further ones of half the size each
    node.POSITION_TEMPERATURE = 10000.0  # of the sine embedding of image cells
    # Images are padded to a multiple of this, in pixels.
    node.SIZE_DIVISIBILITY = 1

    node.NECK = CfgNode()
    # Or "MultiLevelNeck", which deformable attention needs, "AdaMixerNeck" (AdaMixer).
    node.NECK.NAME = "SingleLevelNeck"

    node.ENCODER = CfgNode()
    node.ENCODER.NAME = "TransformerEncoder"  # or "DeformableEncoder"
    node.ENCODER.NUM_LAYERS = 6
    node.ENCODER.NUM_POINTS = 4  # DeformableEncoder: points that a head samples on a level

    node.DECODER = CfgNode()
    node.DECODER.NAME = "DetrDecoder"  # or "ConditionalDecoder"
    node.DECODER.NUM_LAYERS = 6
    node.DECODER.POINT_TEMPERATURE = 10000.0  # of the sine embedding of reference points (Conditional, DAB)
    # ConditionalDecoder: above 0, attention starts around the reference points; 0 is the paper's start.
    node.DECODER.POSITION_GAIN = 0.0
    # DeformableDecoder, DeformableBoxDecoder (two-stage):
    node.DECODER.NUM_POINTS = 4  # points that a head samples on a level
    node.DECODER.BOX_REFINEMENT = False  # a layer's boxes are the next layer's references; heads of its own a layer

    node.ADAMIXER = CfgNode()  # AdaMixerDecoder
    node.ADAMIXER.NUM_GROUPS = 4  # of channels, each with points and mixing matrices of its own
    node.ADAMIXER.IN_POINTS = 32  # points that a group samples
    node.ADAMIXER.OUT_POINTS = 128  # points after mixing

    node.QUERIES = CfgNode()
    # Or "LearnedContentQueries", "TwoStageQueries" (deformable), "AdaMixerQueries".
    node.QUERIES.NAME = "LearnedQueries"

    # Query groups of the training step beside the detector's own, such as denoising queries.
    node.TRAINING_GROUPS = []

    node.MATCHER = CfgNode()
    node.MATCHER.COST_CLASS = 1.0
    node.MATCHER.COST_L1 = 5.0
    node.MATCHER.COST_GIOU = 2.0

    node.LOSS = CfgNode()
    node.LOSS.CLASSIFICATION = "softmax"  # with a "no object" class; or "focal", a sigmoid a class
    node.LOSS.CLASS_WEIGHT = 1.0
    node.LOSS.L1_WEIGHT = 5.0
    node.LOSS.GIOU_WEIGHT = 2.0
    node.LOSS.NO_OBJECT_WEIGHT = 0.1  # softmax only
    node.LOSS.FOCAL_ALPHA = 0.25  # focal only
    node.LOSS.FOCAL_GAMMA = 2.0  # focal only
    node.LOSS.DEEP_SUPERVISION = True  # a loss on every decoder layer, not on the last alone


def _add_distill_config(cfg: CfgNode) -> None:
    cfg.MODEL.DISTILL = CfgNode()
    node = cfg.MODEL.DISTILL
    # The student: any registered meta-architecture that detr_distill.distill.students knows.
    node.STUDENT_ARCHITECTURE = "DetrDetector"

    node.TEACHER = CfgNode()
    node.TEACHER.NAME = "FrozenDetector"  # "" trains the extra groups without a teacher (a control)
    node.TEACHER.CONFIG_FILE = ""  # the teacher's own complete configuration
    node.TEACHER.WEIGHTS = ""
    node.TEACHER.OPTS = []  # KEY VALUE overrides of the teacher's configuration
    node.TEACHER.CLASS_NAMES = []  # empty: the names of the teacher's own training set
    # "aligned": layer k learns from the teacher's layer k, ends joined when counts differ; "last": from its last.
    node.TEACHER_LAYER = "aligned"

    node.MATCHERS = ["AdaptiveMatcher", "FixedMatcher"]
    node.ADAPTIVE_MATCHER = CfgNode()
    node.ADAPTIVE_MATCHER.COST_CLASS = 1.0
    node.ADAPTIVE_MATCHER.COST_L1 = 5.0
    node.ADAPTIVE_MATCHER.COST_GIOU = 2.0
    node.FIXED_MATCHER = CfgNode()
    # Layers of the auxiliary group on which the teacher's label assignment is used: "last", "all" or "none".
    node.FIXED_MATCHER.TEACHER_ASSIGNMENT = "last"
    # Weight of the auxiliary group's detection loss.
    node.FIXED_MATCHER.LOSS_WEIGHT = 1.0
    node.EXTRA_GROUP_MATCHER = CfgNode()
    node.EXTRA_GROUP_MATCHER.LOSS_WEIGHT = 1.0

    node.LOSSES = ["PredictionLoss", "AttentionLoss"]
    node.PREDICTION_LOSS = CfgNode()
    node.PREDICTION_LOSS.WEIGHT = 1.0
    node.PREDICTION_LOSS.GROUPS = []  # matchers that this loss uses ("adaptive", "fixed"); empty: all
    node.PREDICTION_LOSS.LAYERS = "all"  # student layers: "all" or "last"
    node.PREDICTION_LOSS.DIVERGENCE = "focal_bce"  # "focal_bce", "bce" or "kl"
    node.PREDICTION_LOSS.TEMPERATURE = 1.0  # kl only
    node.PREDICTION_LOSS.CLASS_WEIGHT = 1.0
    node.PREDICTION_LOSS.L1_WEIGHT = 5.0
    node.PREDICTION_LOSS.GIOU_WEIGHT = 2.0
    # Box terms are taken where the teacher's highest class probability is above this; 0 takes every pair.
    node.PREDICTION_LOSS.BOX_SCORE_THRESHOLD = 0.25
    # Divisor of every term: "teacher_score" (sum of the teacher's scores) or "pairs" (number of pairs).
    node.PREDICTION_LOSS.NORMALIZER = "teacher_score"

    node.ATTENTION_LOSS = CfgNode()
    node.ATTENTION_LOSS.WEIGHT = 1.0
    node.ATTENTION_LOSS.GROUPS = []
    node.ATTENTION_LOSS.LAYERS = "all"
    node.ATTENTION_LOSS.DIVERGENCE = "kl"  # or "mse"
    node.ATTENTION_LOSS.SELF_WEIGHT = 1.0
    node.ATTENTION_LOSS.CROSS_WEIGHT = 1.0
