"""Every configuration key that detr_distill adds to detectron2's, with its default."""

from __future__ import annotations

from detectron2.config import CfgNode

from .defaults_distill import add_distill_config


def add_detr_distill_config(cfg: CfgNode) -> None:
    """Adds this project's keys to a detectron2 configuration, in place.

    Args:
        cfg: what ``detectron2.config.get_cfg()`` returns.
    """
    _add_data_config(cfg)
    _add_solver_config(cfg)
    _add_detr_config(cfg)
    add_distill_config(cfg)


# Meta-architectures, and the node below MODEL where each keeps its number of classes.
CLASS_NODES = {"DetrDetector": "DETR", "RetinaNet": "RETINANET", "FCOS": "RETINANET", "GeneralizedRCNN": "ROI_HEADS"}


def detector_name(cfg: CfgNode) -> str:
    """The meta-architecture that detects: the student's where one is distilled."""
    name = cfg.MODEL.META_ARCHITECTURE
    return cfg.MODEL.DISTILL.STUDENT_ARCHITECTURE if name == "DistillDetector" else name


def count_classes(cfg: CfgNode) -> tuple[str, int]:
    """The key that holds the number of classes of the detector, or of the student, and its value.

    A detector of a kind that is not among ``CLASS_NODES`` is taken to keep it where R-CNNs do.
    """
    node = CLASS_NODES.get(detector_name(cfg), "ROI_HEADS")
    return f"MODEL.{node}.NUM_CLASSES", cfg.MODEL[node].NUM_CLASSES


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
    # (regular expression, iteration): parameters that train from that iteration on; below 1 a fraction of MAX_ITER.
    cfg.SOLVER.FREEZE = []
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
    _add_library_backbones_config(cfg)

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
    # Of deformable attention: "triton" on CUDA, "pytorch", or "auto", which takes Triton where it works.
    node.DEFORMABLE_KERNEL = "auto"
    node.POSITION_TEMPERATURE = 10000.0  # of the sine embedding of image cells
    # Images are padded to a multiple of this, in pixels.
    node.SIZE_DIVISIBILITY = 1

    node.NECK = CfgNode()
    # Or "MultiLevelNeck", which deformable attention needs, "AdaMixerNeck" (AdaMixer).
    node.NECK.NAME = "SingleLevelNeck"
    # MultiLevelNeck: added to the cells' numbers in the sine embedding; -0.5 is a cell's centre, DINO has 0.
    node.NECK.POSITION_OFFSET = -0.5

    node.ENCODER = CfgNode()
    node.ENCODER.NAME = "TransformerEncoder"  # or "DeformableEncoder"
    node.ENCODER.NUM_LAYERS = 6
    node.ENCODER.NUM_POINTS = 4  # DeformableEncoder: points that a head samples on a level

    node.DECODER = CfgNode()
    node.DECODER.NAME = "DetrDecoder"  # or "ConditionalDecoder"
    node.DECODER.NUM_LAYERS = 6
    node.DECODER.POINT_TEMPERATURE = 10000.0  # of the sine embedding of reference points (Conditional, DAB)
    # ConditionalDecoder, AnchorDecoder: above 0, attention starts around the reference points; 0 is the paper's start.
    node.DECODER.POSITION_GAIN = 0.0
    # DeformableDecoder, DeformableBoxDecoder (two-stage):
    node.DECODER.NUM_POINTS = 4  # points that a head samples on a level
    node.DECODER.BOX_REFINEMENT = False  # a layer's boxes are the next layer's references; heads of its own a layer
    # DinoDecoder:
    node.DECODER.SHARED_HEADS = True  # one class and box head for all layers
    node.DECODER.LOOK_FORWARD_TWICE = True  # a layer's boxes teach the layer before as well

    node.ADAMIXER = CfgNode()  # AdaMixerDecoder
    node.ADAMIXER.NUM_GROUPS = 4  # of channels, each with points and mixing matrices of its own
    node.ADAMIXER.IN_POINTS = 32  # points that a group samples
    node.ADAMIXER.OUT_POINTS = 128  # points after mixing

    node.SMCA = CfgNode()
    node.SMCA.SMOOTHNESS = 8.0  # SmcaDecoder: of the Gaussians around the queries' centres, the larger the wider
    node.SMCA.MULTI_SCALE_LAYERS = [2]  # SmcaEncoder: layers that see all levels; the others see one at a time

    node.ANCHOR = CfgNode()
    node.ANCHOR.ATTENTION = "row_column"  # AnchorEncoder, AnchorDecoder; or "standard"
    node.ANCHOR.NUM_PATTERNS = 3  # AnchorPointQueries: queries at each anchor point; must divide NUM_QUERIES
    node.ANCHOR.POINTS = "learned"  # or on a "grid"

    node.QUERIES = CfgNode()
    # Or "LearnedContentQueries", "TwoStageQueries" (deformable), "AdaMixerQueries".
    node.QUERIES.NAME = "LearnedQueries"

    # Query groups of the training step beside the detector's own, such as denoising queries.
    node.TRAINING_GROUPS = []
    node.DENOISING = CfgNode()  # DenoisingQueries (DN-DETR)
    node.DENOISING.NUM_GROUPS = 5
    node.DENOISING.LABEL_NOISE = 0.2  # probability that an object's class is drawn anew
    node.DENOISING.BOX_NOISE = 0.4  # most that a box moves and grows, in parts of its half size and its size
    node.CONTRASTIVE_DENOISING = CfgNode()  # ContrastiveDenoisingQueries (DINO)
    node.CONTRASTIVE_DENOISING.NUM_PAIRS = 100  # of a positive and a negative query, about, in all groups together
    node.CONTRASTIVE_DENOISING.LABEL_NOISE = 0.5  # half of it is the probability that a class is drawn anew
    node.CONTRASTIVE_DENOISING.BOX_NOISE = 1.0  # most that a positive box's corners move, in parts of its half size
    node.GROUP_QUERIES = CfgNode()  # GroupQueries (Group DETR)
    node.GROUP_QUERIES.NUM_GROUPS = 11  # groups of queries in all, the detector's own included
    node.GROUP_QUERIES.LOSS_WEIGHT = 1.0  # of each further group
    node.GROUP_QUERIES.COMBINE = "mean"  # of the losses of all groups; or "sum"
    node.HYBRID_QUERIES = CfgNode()  # HybridQueries (H-DETR)
    node.HYBRID_QUERIES.NUM_QUERIES = 1500  # of the one-to-many branch
    node.HYBRID_QUERIES.REPEATS = 6  # how often every object stands in the branch's targets
    node.HYBRID_QUERIES.LOSS_WEIGHT = 1.0  # of the branch

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


def _add_library_backbones_config(cfg: CfgNode) -> None:
    # TimmBackbone and TorchvisionBackbone; MODEL.BACKBONE.FREEZE_AT freezes: 1 the stem, 2 its first stage too, ...
    for name in ("TIMM", "TORCHVISION"):
        node = cfg.MODEL[name] = CfgNode()
        node.NAME = "resnet50"  # of the model in that library
        node.OUT_FEATURES = ["stage4"]  # stage1 has stride 4
        node.OUTPUT_STRIDE = 32  # 16 (DC5) or 8: dilated last stages
        node.FROZEN_NORM = True  # fixed batch normalisation
        # Weights of the classifier: a file or an address, or "download"; not read where MODEL.WEIGHTS is set.
        node.PRETRAINED = ""
    cfg.MODEL.TIMM.OUTPUT_NORM = False  # a layer normalisation on each feature
    cfg.MODEL.TIMM.DROP_PATH = 0.0  # highest rate of stochastic depth
    cfg.MODEL.TIMM.GRADIENT_CHECKPOINTING = False
