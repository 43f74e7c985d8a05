"""The configuration keys of distillation, below ``MODEL.DISTILL``, with their defaults."""

from __future__ import annotations

from detectron2.config import CfgNode


def add_distill_config(cfg: CfgNode) -> None:
    cfg.MODEL.DISTILL = CfgNode()
    node = cfg.MODEL.DISTILL
    # The student: any registered meta-architecture that detr_distill.distill.students knows.
    node.STUDENT_ARCHITECTURE = "DetrDetector"

    node.TEACHER = CfgNode()
    node.TEACHER.NAME = "FrozenDetector"  # "" for none (a control)
    node.TEACHER.CONFIG_FILE = ""  # the teacher's own complete configuration
    node.TEACHER.WEIGHTS = ""
    node.TEACHER.OPTS = []  # KEY VALUE overrides of the teacher's configuration
    node.TEACHER.CLASS_NAMES = []  # empty: the names of the teacher's own training set
    # "aligned": layer k learns from the teacher's layer k, ends joined when counts differ; "last": from its last.
    node.TEACHER_LAYER = "aligned"

    node.EMA_TEACHER = CfgNode()
    node.EMA_TEACHER.DECAY = 0.9997  # of the student's moving average, a step
    node.EMA_TEACHER.RAMP_UP = True  # a smaller decay in the first steps

    node.LABEL_ENCODER = CfgNode()
    node.LABEL_ENCODER.IN_FEATURES = []  # the student's maps that are encoded; empty: all that its head reads
    node.LABEL_ENCODER.CONTEXT = True  # a row of the whole image behind each image's objects
    node.LABEL_ENCODER.USE_MASKS = False  # objects are their masks instead of their boxes
    node.LABEL_ENCODER.CLASS_EMBEDDING = 0  # width of a learned vector a class; 0: one-hot
    node.LABEL_ENCODER.NUM_HEADS = 8
    node.LABEL_ENCODER.GUIDE = "student"  # appearances ask and labels answer; "label": the reverse
    node.LABEL_ENCODER.DETACH_APPEARANCE = False  # keep the encoder's gradient from the student's maps
    node.LABEL_ENCODER.REFINEMENT_LAYERS = 3
    node.LABEL_ENCODER.REFINEMENT_KERNEL = 3
    node.LABEL_ENCODER.HEAD_SHARE = 1.0  # part of the batch's images on which the student's head reads the maps
    node.LABEL_ENCODER.HEAD_REGIONS = 1.0  # part of the regions that a two-stage head samples on them
    node.LABEL_ENCODER.HEAD_LEARNS = True  # the student's head learns from the encoder's maps too
    node.LABEL_ENCODER.APPEARANCE_KERNEL = 3
    node.LABEL_ENCODER.KEEP_LABEL = False  # add an object's own label embedding to what attention tells it

    node.LABEL_MAP_ENCODER = CfgNode()
    node.LABEL_MAP_ENCODER.WIDTH = 128  # channels of the stem; the last stage has sixteen times as many

    # Iterations from 1 on are counted as such; below 1 they are fractions of SOLVER.MAX_ITER.
    node.SCHEDULE = CfgNode()
    node.SCHEDULE.STUDENT_FROM = 0.0  # before it the distillation losses train adapters alone
    node.SCHEDULE.STOP_AT = 0.0  # from it on they count nothing; 0: never
    node.SCHEDULE.STEPS = []  # iterations, fractions, or "lr_drop" (SOLVER.STEPS[0])
    node.SCHEDULE.FACTORS = []  # what multiplies the distillation losses from each step on
    node.BALANCE = CfgNode()
    node.BALANCE.TARGET_SHARE = 0.0  # of the distillation losses in the total, steered; 0: weights stay as configured
    node.BALANCE.ITERATIONS = 1000
    node.BALANCE.RANGE = [0.01, 100.0]  # of the common factor

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
    node.GENERAL_MATCHER = CfgNode()
    node.GENERAL_MATCHER.NUM_QUERIES = 300  # random queries of a step
    node.OVERLAP_MATCHER = CfgNode()  # for students with many predictions an object
    node.OVERLAP_MATCHER.TEACHER_QUERIES = 50  # of the teacher's best detections an image, those that teach
    node.OVERLAP_MATCHER.SCORE_THRESHOLD = 0.3  # teacher's lowest best class probability
    node.OVERLAP_MATCHER.STUDENT_PREDICTIONS = 9  # that learn from each of them
    node.OVERLAP_MATCHER.MIN_IOU = 0.5  # of these with it

    node.LOSSES = ["PredictionLoss", "AttentionLoss"]
    node.PREDICTION_LOSS = CfgNode()
    node.PREDICTION_LOSS.WEIGHT = 1.0
    node.PREDICTION_LOSS.GROUPS = []  # matchers that this loss uses, such as "adaptive"; empty: all
    node.PREDICTION_LOSS.LAYERS = "all"  # student layers: "all" or "last"
    node.PREDICTION_LOSS.DIVERGENCE = "focal_bce"  # "focal_bce", "bce", "kl" or "softmax_kl"
    node.PREDICTION_LOSS.TEMPERATURE = 1.0  # of all but focal_bce
    node.PREDICTION_LOSS.CLASS_WEIGHT = 1.0
    node.PREDICTION_LOSS.L1_WEIGHT = 5.0
    node.PREDICTION_LOSS.GIOU_WEIGHT = 2.0
    # Box terms are taken where the teacher's highest class probability is above this; 0 takes every pair.
    node.PREDICTION_LOSS.BOX_SCORE_THRESHOLD = 0.25
    # Divisor of every term: "teacher_score" (sum of the teacher's scores) or "pairs" (number of pairs).
    node.PREDICTION_LOSS.NORMALIZER = "teacher_score"
    # The class term is taken on "all" pairs, or on those with the teacher's "positives": its queries that its own
    # matching gives an object.
    node.PREDICTION_LOSS.CLASS_TARGETS = "all"
    node.PREDICTION_LOSS.PAIR_WEIGHT = "equal"  # or "teacher_score": a pair counts by the teacher's best probability

    node.QUERY_RELATION_LOSS = CfgNode()
    node.QUERY_RELATION_LOSS.WEIGHT = 1.0
    node.QUERY_RELATION_LOSS.GROUPS = []
    node.QUERY_RELATION_LOSS.LAYERS = "all"
    node.QUERY_RELATION_LOSS.DIVERGENCE = "distance"  # or "contrastive"
    node.QUERY_RELATION_LOSS.NORMALIZE = True  # distance only: measured in the image's mean distance
    node.QUERY_RELATION_LOSS.TEMPERATURE = 0.07  # contrastive only

    node.FEATURE_LOSS = CfgNode()
    node.FEATURE_LOSS.WEIGHT = 1.0
    node.FEATURE_LOSS.IN_FEATURES = []  # maps that are compared; empty: all of the teacher's
    node.FEATURE_LOSS.TEACHER_FEATURES = []  # the teacher's maps for them, in order; empty: the same names
    node.FEATURE_LOSS.DIVERGENCE = "mse"  # "mse", "js", "js_distance", "kl" or "cosine"
    node.FEATURE_LOSS.SOFTMAX = "channels"  # axis of the distributions of js, js_distance and kl; or "space"
    node.FEATURE_LOSS.TEMPERATURE = 1.0  # of that softmax
    node.FEATURE_LOSS.NORM = "instance"  # or "group", "batch", "attention", "none"
    node.FEATURE_LOSS.ADAPTER_LAYERS = 3  # convolutions on the student's maps, 0 to 3
    node.FEATURE_LOSS.ADAPTER_KERNEL = 3
    node.FEATURE_LOSS.MEAN = "cells"  # over the cells of all levels; "levels": over the levels' own means; "sum": sum
    node.FEATURE_LOSS.LEVEL_WEIGHTS = []  # with MEAN "levels"; empty: equal
    node.FEATURE_LOSS.FOREGROUND = False  # cells inside objects alone
    node.FEATURE_LOSS.BACKGROUND_WEIGHT = 0.0  # with FOREGROUND, of the mean over all other cells, which is added

    node.FOCAL_GLOBAL_LOSS = CfgNode()  # FGD
    node.FOCAL_GLOBAL_LOSS.WEIGHT = 1.0  # of all four terms
    node.FOCAL_GLOBAL_LOSS.IN_FEATURES = []
    node.FOCAL_GLOBAL_LOSS.TEACHER_FEATURES = []
    node.FOCAL_GLOBAL_LOSS.OBJECT_WEIGHT = 1e-3
    node.FOCAL_GLOBAL_LOSS.BACKGROUND_WEIGHT = 5e-4
    node.FOCAL_GLOBAL_LOSS.ATTENTION_WEIGHT = 1e-3
    node.FOCAL_GLOBAL_LOSS.RELATION_WEIGHT = 5e-6
    node.FOCAL_GLOBAL_LOSS.TEMPERATURE = 0.5  # of the attention over space and channels

    node.MASKED_GENERATION_LOSS = CfgNode()  # MGD
    node.MASKED_GENERATION_LOSS.WEIGHT = 2e-5
    node.MASKED_GENERATION_LOSS.IN_FEATURES = []
    node.MASKED_GENERATION_LOSS.TEACHER_FEATURES = []
    node.MASKED_GENERATION_LOSS.MASK_RATIO = 0.65  # of the cells

    node.TARGET_AWARE_LOSS = CfgNode()
    node.TARGET_AWARE_LOSS.WEIGHT = 1.0
    node.TARGET_AWARE_LOSS.EXPONENT = 0.5  # share of the class score in a query's quality; the rest is the IoU's
    node.TARGET_AWARE_LOSS.FEATURES = "memory"  # the encoder's output; "neck": its input
    # Queries are compared with the memory for their masks through a "learned" layer, or as the "teacher"'s last
    # cross-attention reads it (AdaMixer has none).
    node.TARGET_AWARE_LOSS.PROJECTION = "learned"

    node.ATTENTION_LOSS = CfgNode()
    node.ATTENTION_LOSS.WEIGHT = 1.0
    node.ATTENTION_LOSS.GROUPS = []
    node.ATTENTION_LOSS.LAYERS = "all"
    node.ATTENTION_LOSS.DIVERGENCE = "kl"  # or "mse"
    node.ATTENTION_LOSS.SELF_WEIGHT = 1.0
    node.ATTENTION_LOSS.CROSS_WEIGHT = 1.0

    node.SAMPLED_ATTENTION_LOSS = CfgNode()  # in place of the cross-attention loss between deformable decoders
    node.SAMPLED_ATTENTION_LOSS.WEIGHT = 1.0
    node.SAMPLED_ATTENTION_LOSS.GROUPS = []
    node.SAMPLED_ATTENTION_LOSS.LAYERS = "all"
    node.SAMPLED_ATTENTION_LOSS.DISTANCE = "energy"  # or "js", on a grid
    node.SAMPLED_ATTENTION_LOSS.HEADS = "mean"  # or "each", where both sides have as many
    node.SAMPLED_ATTENTION_LOSS.DIRECTIONS = 4  # energy only: lines that the points are projected on
    node.SAMPLED_ATTENTION_LOSS.GRID_SIZE = 16  # js only: nodes along a side of the image
    # A pair counts by the teacher's best class probability ("teacher_score"), or all alike ("equal").
    node.SAMPLED_ATTENTION_LOSS.PAIR_WEIGHT = "teacher_score"
