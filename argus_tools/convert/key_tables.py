"""Key tables: which tensors of a published checkpoint each Argus tensor is made of, as data that reads both ways.

Argus fuses projections that share an input (`qkv_proj` rows q|k|v, `gate_up_proj` rows gate|up), so a rule names one
Argus tensor and the source tensors whose rows stand in it one after another. Fusing and splitting rows move bits and
compute nothing, so both directions are bitwise. `{i}` is a layer's number.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """One Argus tensor.

    Args:
        argus: its name.
        source: the tensors whose rows it holds, in order.
        rows: the names of their row counts (Argus' own sizes), needed to split it again; empty for a single source.
        leading_ones: axes of size 1 that the source has before those of the Argus tensor.
    """

    argus: str
    source: tuple[str, ...]
    rows: tuple[str, ...] = ()
    leading_ones: int = 0

    def at_layer(self, i: int) -> "Rule":
        source = tuple(name.replace("{i}", str(i)) for name in self.source)
        return Rule(self.argus.replace("{i}", str(i)), source, self.rows, self.leading_ones)


@dataclass(frozen=True)
class KeyTable:
    """All rules of one checkpoint format.

    Args:
        rules: one per Argus tensor that the format can hold.
        renames: (prefix, canonical prefix) pairs: other spellings of the same keys, first match wins.
        ignored: regular expressions of keys that hold nothing learned.
    """

    name: str
    rules: tuple[Rule, ...]
    renames: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = (r".*rotary_emb\.inv_freq", r".*\.position_ids")

    def canonical(self, key: str) -> str:
        """The key as the rules spell it."""
        for prefix, new in self.renames:
            if key.startswith(prefix):
                return new + key[len(prefix) :]
        return key

    def expand(self, vision_layers: int, text_layers: int) -> list[Rule]:
        """The rules with every layer written out."""
        rules = []
        for rule in self.rules:
            layers = vision_layers if rule.argus.startswith("model.vision_model.") else text_layers
            rules += [rule.at_layer(i) for i in range(layers)] if "{i}" in rule.argus else [rule]
        return rules


def _pairs(argus: str, source: str) -> list[Rule]:
    """A weight and its bias."""
    return [Rule(f"{argus}.{part}", (f"{source}.{part}",)) for part in ("weight", "bias")]


def _stacked(argus: str, sources: list[str], rows: tuple[str, ...], parts=("weight", "bias")) -> list[Rule]:
    return [Rule(f"{argus}.{part}", tuple(f"{source}.{part}" for source in sources), rows) for part in parts]


def text_rules(prefix: str, head: str) -> list[Rule]:
    """Llama and Qwen2, whose keys are the same; `prefix` stands before `embed_tokens`, `head` is the output head's."""
    argus, ours, theirs = "model.text_model.", "model.text_model.layers.{i}.", prefix + "layers.{i}."
    rules = [Rule(argus + name, (prefix + name,)) for name in ("embed_tokens.weight", "norm.weight")]
    rules += [Rule("lm_head.weight", (head,))]
    for name in ("input_layernorm", "post_attention_layernorm", "self_attn.o_proj", "mlp.down_proj"):
        rules += [Rule(f"{ours}{name}.weight", (f"{theirs}{name}.weight",))]
    qkv = [f"{theirs}self_attn.{letter}_proj" for letter in "qkv"]
    rules += _stacked(ours + "self_attn.qkv_proj", qkv, ("text_q", "text_kv", "text_kv"))
    gate_up = [f"{theirs}mlp.{name}_proj" for name in ("gate", "up")]
    return rules + _stacked(ours + "mlp.gate_up_proj", gate_up, ("text_mlp", "text_mlp"), parts=("weight",))


def siglip_rules(prefix: str) -> list[Rule]:
    """The tower of SmolVLM and Idefics3, and SigLIP's own."""
    argus, ours, theirs = "model.vision_model.", "model.vision_model.layers.{i}.", prefix + "encoder.layers.{i}."
    rules = _pairs(argus + "patch_embedding", prefix + "embeddings.patch_embedding")
    rules += [Rule(argus + "position_embedding.weight", (prefix + "embeddings.position_embedding.weight",))]
    rules += _pairs(argus + "post_layernorm", prefix + "post_layernorm")
    for name in ("layer_norm1", "layer_norm2", "self_attn.out_proj", "mlp.fc1", "mlp.fc2"):
        rules += _pairs(ours + name, theirs + name)
    qkv = [f"{theirs}self_attn.{letter}_proj" for letter in "qkv"]
    return rules + _stacked(ours + "self_attn.qkv_proj", qkv, ("vision",) * 3)


def internvit_hf_rules(prefix: str) -> list[Rule]:
    """InternViT as transformers' InternVLVisionModel spells it."""
    argus, ours, theirs = "model.vision_model.", "model.vision_model.layers.{i}.", prefix + "encoder.layer.{i}."
    rules = _pairs(argus + "patch_embedding", prefix + "embeddings.patch_embeddings.projection")
    rules += [
        Rule(argus + "class_embedding", (prefix + "embeddings.cls_token",), leading_ones=2),
        Rule(argus + "position_embedding.weight", (prefix + "embeddings.position_embeddings",), leading_ones=1),
        Rule(ours + "layer_scale1", (theirs + "lambda_1",)),
        Rule(ours + "layer_scale2", (theirs + "lambda_2",)),
    ]
    rules += _pairs(argus + "post_layernorm", prefix + "layernorm")
    for name, source in {
        "layer_norm1": "layernorm_before",
        "layer_norm2": "layernorm_after",
        "self_attn.out_proj": "attention.projection_layer",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    }.items():
        rules += _pairs(ours + name, theirs + source)
    qkv = [f"{theirs}attention.{letter}_proj" for letter in "qkv"]
    return rules + _stacked(ours + "self_attn.qkv_proj", qkv, ("vision",) * 3)


def internvit_rules(prefix: str) -> list[Rule]:
    """InternViT as its authors spell it (InternVisionModel): q, k and v are one tensor there too."""
    argus, ours, theirs = "model.vision_model.", "model.vision_model.layers.{i}.", prefix + "encoder.layers.{i}."
    rules = _pairs(argus + "patch_embedding", prefix + "embeddings.patch_embedding")
    rules += [
        Rule(argus + "class_embedding", (prefix + "embeddings.class_embedding",), leading_ones=2),
        Rule(argus + "position_embedding.weight", (prefix + "embeddings.position_embedding",), leading_ones=1),
        Rule(ours + "layer_scale1", (theirs + "ls1",)),
        Rule(ours + "layer_scale2", (theirs + "ls2",)),
    ]
    for name, source in {
        "layer_norm1": "norm1",
        "layer_norm2": "norm2",
        "self_attn.qkv_proj": "attn.qkv",
        "self_attn.out_proj": "attn.proj",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    }.items():
        rules += _pairs(ours + name, theirs + source)
    return rules


def _connector(names: dict[str, str]) -> list[Rule]:
    return [rule for name, source in names.items() for rule in _pairs("model.connector." + name, source)]


SMOLVLM = KeyTable(
    "smolvlm",  # Idefics3's keys are the same
    (
        *siglip_rules("model.vision_model."),
        Rule("model.connector.proj.weight", ("model.connector.modality_projection.proj.weight",)),
        *text_rules("model.text_model.", "lm_head.weight"),
    ),
)

# The published -hf checkpoints, and what save_pretrained writes on transformers 4.57 and 5.x alike. In memory, and so
# in checkpoints that other tools wrote from a state dict, the same keys begin with "model.".
INTERNVL = KeyTable(
    "internvl",
    (
        *internvit_hf_rules("vision_tower."),
        *_connector(
            {
                "norm": "multi_modal_projector.layer_norm",
                "linear_1": "multi_modal_projector.linear_1",
                "linear_2": "multi_modal_projector.linear_2",
            }
        ),
        *text_rules("language_model.model.", "language_model.lm_head.weight"),
    ),
    renames=(
        ("model.language_model.model.", "language_model.model."),
        ("model.language_model.", "language_model.model."),
        ("model.vision_tower.", "vision_tower."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
        ("lm_head.", "language_model.lm_head."),
    ),
)

INTERNVL_CHAT = KeyTable(
    "internvl_chat",
    (
        *internvit_rules("vision_model."),
        *_connector({"norm": "mlp1.0", "linear_1": "mlp1.1", "linear_2": "mlp1.3"}),
        *text_rules("language_model.model.", "language_model.lm_head.weight"),
    ),
)

# Parts alone, for bootstrap: a plain language model, and InternViT in either layout.
CAUSAL_LM = KeyTable("causal_lm", tuple(text_rules("model.", "lm_head.weight")))
INTERNVIT_HF = KeyTable("internvl_vision", tuple(internvit_hf_rules("")))
INTERNVIT = KeyTable("intern_vit_6b", tuple(internvit_rules("")))
SIGLIP = KeyTable(
    "siglip_vision_model",
    tuple(siglip_rules("")),
    renames=(("vision_model.", ""),),  # 4.57's keys, and those of a whole SigLIP
    ignored=(r".*\.position_ids", r"head\..*"),  # the pooling head, which no tower here uses
)
