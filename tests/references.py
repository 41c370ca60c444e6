"""Each objective once more, written from its paper as a naive loop in float64, and outputs to run both on."""

import copy
import math

import torch
from samples import tiny_config
from torch import Tensor

from nlpkd import objectives as o
from nlpkd.models.capture import CapturedOutput

MASK = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0], [1, 1, 0, 0, 0]])
LABELS = torch.tensor([0, 2, 1, -100])
ROWS, SEQ = MASK.shape
LAYERS, HEADS = 3, 2
LENGTHS = MASK.sum(dim=1).tolist()
FEATURES = ("hidden_states", "attentions", "queries", "keys", "values")


def outputs(seed: int, hidden: int = 4, labels: int = 3, dtype=torch.float32, heads: int = HEADS) -> CapturedOutput:
    """Random outputs of a model on four texts of 3, 5, 1 and 2 tokens."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator)

    def layers(*shape):
        return tuple(random(*shape).to(dtype).requires_grad_() for _ in range(LAYERS))

    keys = MASK[:, None, None, :]
    maps = (random(ROWS, heads, SEQ, SEQ).masked_fill(keys == 0, -1e4).softmax(dim=-1) for _ in range(LAYERS))
    head = (ROWS, heads, SEQ, hidden // heads)
    return CapturedOutput(
        logits=random(ROWS, labels).to(dtype).requires_grad_(),
        hidden_states=tuple(random(ROWS, SEQ, hidden).to(dtype).requires_grad_() for _ in range(LAYERS + 1)),
        attentions=tuple(attention.to(dtype).requires_grad_() for attention in maps),
        queries=layers(*head),
        keys=layers(*head),
        values=layers(*head),
    )


def tensors(output: CapturedOutput) -> list[Tensor]:
    """All tensors of outputs, in a fixed order."""
    return [output.logits, *(tensor for kind in FEATURES for tensor in getattr(output, kind))]


def changed(output: CapturedOutput, change, only_features: bool = False) -> CapturedOutput:
    """Outputs with every tensor changed; `change` is given the kind and the tensor."""
    features = {kind: tuple(change(kind, tensor) for tensor in getattr(output, kind)) for kind in FEATURES}
    logits = output.logits if only_features else change("logits", output.logits)
    return CapturedOutput(logits=logits, **features)


def doubled(output: CapturedOutput) -> CapturedOutput:
    """The same numbers in float64, as new leaves."""
    return changed(output, lambda kind, tensor: tensor.detach().double().requires_grad_())


def batch() -> dict:
    """The texts' batch; the last row has no gold label."""
    return {"input_ids": torch.zeros_like(MASK), "attention_mask": MASK.clone(), "labels": LABELS.clone()}


def bound(
    objective, student_hidden: int = 4, teacher_hidden: int = 4, labels: int = 3, heads=(HEADS, HEADS), **config
):
    """The objective, bound to the configs of small BERTs."""
    torch.manual_seed(0)
    student = tiny_config(layers=LAYERS, hidden=student_hidden, heads=heads[0], num_labels=labels, **config)
    teacher = tiny_config(layers=LAYERS, hidden=teacher_hidden, heads=heads[1], num_labels=labels, **config)
    objective.bind(student, teacher)
    return objective


def softmax(values: Tensor, temperature: float = 1.0) -> list[Tensor]:
    weights = [torch.exp(value / temperature) for value in values]
    return [weight / sum(weights) for weight in weights]


def kl(p: list[Tensor], q: list[Tensor]) -> Tensor:
    return sum(a * (torch.log(a) - torch.log(b)) for a, b in zip(p, q, strict=True))


def mean(values: list) -> Tensor:
    return sum(values) / len(values)


def dot(a: Tensor, b: Tensor) -> Tensor:
    return sum(x * y for x, y in zip(a, b, strict=True))


def norm(a: Tensor) -> Tensor:
    return torch.sqrt(dot(a, a))


def soft(temperature, of_row):
    """A mean over rows of T^2 times a divergence of softened distributions."""

    def naive(objective, student, teacher):
        return mean(
            [
                temperature**2 * of_row(softmax(s, temperature), softmax(t, temperature), row)
                for row, (s, t) in enumerate(zip(student.logits, teacher.logits, strict=True))
            ]
        )

    return naive


def naive_jsd(beta):
    def of_row(s, t, row):
        mixture = [beta * b + (1 - beta) * a for a, b in zip(s, t, strict=True)]
        return beta * kl(t, mixture) + (1 - beta) * kl(s, mixture)

    return of_row


def naive_dkd(alpha, beta):
    def of_row(s, t, row):
        target = int(LABELS[row]) if LABELS[row] != -100 else max(range(3), key=lambda c: t[c])
        others = [c for c in range(3) if c != target]
        pair_s, pair_t = ([p[target], sum(p[c] for c in others)] for p in (s, t))
        rest_s, rest_t = ([p[c] / sum(p[d] for d in others) for c in others] for p in (s, t))
        return alpha * kl(pair_t, pair_s) + beta * kl(rest_t, rest_s)

    return of_row


def naive_standardized(objective, student, teacher):
    values = []
    for s, t in zip(student.logits, teacher.logits, strict=True):
        z = []
        for logits in (s, t):
            center = mean(list(logits))
            deviation = torch.sqrt(sum((x - center) ** 2 for x in logits) / (len(logits) - 1))
            z.append(torch.stack([(x - center) / deviation for x in logits]))
        values.append(4.0 * kl(softmax(z[1], 2.0), softmax(z[0], 2.0)))
    return mean(values)


def naive_errors(errors, confidence=False):
    def naive(objective, student, teacher):
        values = []
        for row, (s, t) in enumerate(zip(student.logits, teacher.logits, strict=True)):
            gold, first = int(LABELS[row]), int(t.argmax())
            weight = max(softmax(t)) if confidence else 1.0
            if gold not in (-100, first) and errors == "skip":
                weight = 0.0
            if gold not in (-100, first) and errors == "shift":
                order = list(range(3))
                order[gold], order[first] = first, gold
                t = torch.stack([t[k] for k in order])
            values.append(weight * 4.0 * kl(softmax(t, 2.0), softmax(s, 2.0)))
        return mean(values)

    return naive


def naive_focal(objective, student, teacher):
    far = [
        1 - float((dot(s, t) / norm(s) / norm(t)).detach())
        for s, t in zip(student.logits, teacher.logits, strict=True)
    ]
    values = []
    for row, (s, t) in enumerate(zip(student.logits, teacher.logits, strict=True)):
        temperature = max(0.5, 2.0 + 1.0 * (mean(far) - far[row]))
        values.append(temperature**2 * kl(softmax(t, temperature), softmax(s, temperature)))
    return mean(values)


def naive_cross_entropy(objective, student, teacher):
    labelled = [row for row in range(ROWS) if LABELS[row] != -100]
    return mean([-torch.log(softmax(student.logits[row])[int(LABELS[row])]) for row in labelled])


def naive_weighted_smoothed(objective, student, teacher):
    weights, total, count = [1.0, 2.0, 5.0], 0.0, 0.0
    for row in range(ROWS):
        if LABELS[row] == -100:
            continue
        p = softmax(student.logits[row])
        gold = int(LABELS[row])
        total = total - weights[gold] * 0.9 * torch.log(p[gold])
        total = total - sum(weights[c] * 0.1 / 3 * torch.log(p[c]) for c in range(3))
        count += weights[gold]
    return total / count


def naive_teacher_label(threshold):
    def naive(objective, student, teacher):
        values = []
        for s, t in zip(student.logits, teacher.logits, strict=True):
            p = softmax(t)
            sure = float(max(p).detach()) >= threshold
            values.append(-torch.log(softmax(s)[int(t.argmax())]) * sure)
        return mean(values)

    return naive


def naive_logit_mse(objective, student, teacher):
    return mean([(s - t) ** 2 for s, t in zip(student.logits.flatten(), teacher.logits.flatten(), strict=True)])


def pearson(a: list[Tensor], b: list[Tensor]) -> Tensor:
    a, b = [x - mean(a) for x in a], [x - mean(b) for x in b]
    return dot(a, b) / torch.sqrt(dot(a, a)) / torch.sqrt(dot(b, b))


def naive_dist(temperature, beta, gamma):
    def naive(objective, student, teacher):
        s = [softmax(row, temperature) for row in student.logits]
        t = [softmax(row, temperature) for row in teacher.logits]
        inter = mean([1 - pearson(a, b) for a, b in zip(s, t, strict=True)])
        columns = range(len(s[0]))
        intra = mean([1 - pearson([row[c] for row in s], [row[c] for row in t]) for c in columns])
        return temperature**2 * (beta * inter + gamma * intra)

    return naive


def per_token(pairs, of_states):
    """A mean over pairs of layers and real tokens."""

    def naive(objective, student, teacher):
        values = []
        for position, (s, t) in enumerate(pairs):
            for row in range(ROWS):
                for token in range(LENGTHS[row]):
                    ours, theirs = student.hidden_states[s][row, token], teacher.hidden_states[t][row, token]
                    if len(objective.projections):
                        matrix = objective.projections[position].weight.double()
                        ours = torch.stack([dot(line, ours) for line in matrix])
                    values.append(of_states(ours, theirs))
        return mean(values)

    return naive


def squared(ours, theirs):
    return mean([(a - b) ** 2 for a, b in zip(ours, theirs, strict=True)])


def cosine(ours, theirs):
    return 1 - dot(ours, theirs) / norm(ours) / norm(theirs)


def naive_patient(pairs):
    def naive(objective, student, teacher):
        values = []
        for s, t in pairs:
            for row in range(ROWS):
                ours, theirs = student.hidden_states[s][row, 0], teacher.hidden_states[t][row, 0]
                difference = ours / norm(ours) - theirs / norm(theirs)
                values.append(dot(difference, difference))
        return mean(values)

    return naive


def naive_learned(objective, student, teacher):
    values = []
    for s in range(1, LAYERS + 1):
        shares = softmax(objective.layer_scores[s - 1].double())
        values += [
            shares[t - 1] * per_token([(s, t)], squared)(objective, student, teacher) for t in range(1, LAYERS + 1)
        ]
    return sum(values) / LAYERS


def neurons(output, layer, row):
    states = output.hidden_states[layer][row, : LENGTHS[row]]
    return [states[:, k] / norm(states[:, k]) for k in range(states.shape[1])]


def naive_discrepancy(pairs, kernel):
    def naive(objective, student, teacher):
        values = []
        for s, t in pairs:
            for row in range(ROWS):
                u, v = neurons(student, s, row), neurons(teacher, t, row)
                same_u = mean([kernel(dot(a, b)) for a in u for b in u])
                same_v = mean([kernel(dot(a, b)) for a in v for b in v])
                cross = mean([kernel(dot(a, b)) for a in u for b in v])
                values.append(same_u + same_v - 2 * cross)
        return mean(values)

    return naive


def naive_gram(pairs):
    def flow(output, first, second, row):
        here, there = (output.hidden_states[layer][row, : LENGTHS[row]] for layer in (first, second))
        width = here.shape[1]
        return [dot(here[:, i], there[:, j]) / LENGTHS[row] for i in range(width) for j in range(width)]

    def naive(objective, student, teacher):
        values = []
        for (s, t), (s_next, t_next) in zip(pairs, pairs[1:], strict=False):
            for row in range(ROWS):
                ours, theirs = flow(student, s, s_next, row), flow(teacher, t, t_next, row)
                values.append(mean([(a - b) ** 2 for a, b in zip(ours, theirs, strict=True)]))
        return mean(values)

    return naive


def naive_attention_mse(pairs, scores=False):
    def value(output, layer, row, head, i, j):
        if not scores:
            return output.attentions[layer - 1][row, head, i, j]
        q, k = output.queries[layer - 1][row, head, i], output.keys[layer - 1][row, head, j]
        return dot(q, k) / math.sqrt(len(q))

    def naive(objective, student, teacher):
        errors = [
            (value(student, s, row, head, i, j) - value(teacher, t, row, head, i, j)) ** 2
            for s, t in pairs
            for row in range(ROWS)
            for head in range(HEADS)
            for i in range(LENGTHS[row])
            for j in range(LENGTHS[row])
        ]
        return mean(errors)

    return naive


def naive_attention_kl(pairs):
    def naive(objective, student, teacher):
        return mean(
            [
                kl(
                    list(teacher.attentions[t - 1][row, head, i, : LENGTHS[row]]),
                    list(student.attentions[s - 1][row, head, i, : LENGTHS[row]]),
                )
                for s, t in pairs
                for row in range(ROWS)
                for head in range(HEADS)
                for i in range(LENGTHS[row])
            ]
        )

    return naive


def naive_relation(pairs, kinds, relation_heads):
    def relation(output, kind, layer, row, a, i):
        vectors = [getattr(output, kind)[layer - 1][row, :, token].flatten() for token in range(LENGTHS[row])]
        width = len(vectors[0]) // relation_heads
        cut = [vector[a * width : (a + 1) * width] for vector in vectors]
        return softmax(torch.stack([dot(cut[i], other) / math.sqrt(width) for other in cut]))

    def naive(objective, student, teacher):
        return sum(
            mean(
                [
                    kl(relation(teacher, kind, t, row, a, i), relation(student, kind, s, row, a, i))
                    for s, t in pairs
                    for row in range(ROWS)
                    for a in range(relation_heads)
                    for i in range(LENGTHS[row])
                ]
            )
            for kind in kinds
        )

    return naive


def huber(a, b):
    difference = abs(a - b)
    return 0.5 * difference**2 if difference < 1 else difference - 0.5


def vectors_of(output, on):
    return list(output.logits) if on == "logits" else list(output.hidden_states[LAYERS][:, 0])


def naive_distance(on):
    def naive(objective, student, teacher):
        pairs = [(i, j) for i in range(ROWS) for j in range(ROWS) if i != j]
        scaled = []
        for output in (student, teacher):
            x = vectors_of(output, on)
            distances = [norm(x[i] - x[j]) for i, j in pairs]
            scaled.append([distance / mean(distances) for distance in distances])
        return mean([huber(a, b) for a, b in zip(*scaled, strict=True)])

    return naive


def naive_angle(objective, student, teacher):
    triples = [(i, j, k) for i in range(ROWS) for j in range(ROWS) for k in range(ROWS) if len({i, j, k}) == 3]
    angles = []
    for output in (student, teacher):
        x = vectors_of(output, "hidden_states")
        angles.append([dot(x[i] - x[j], x[k] - x[j]) / norm(x[i] - x[j]) / norm(x[k] - x[j]) for i, j, k in triples])
    return mean([huber(a, b) for a, b in zip(*angles, strict=True)])


def naive_contrastive(objective, student, teacher):
    mapped = []
    for mapping, output in zip(objective.maps, (student, teacher), strict=True):
        weight, bias = mapping.weight.double(), mapping.bias.double()
        x = [torch.stack([dot(line, v) for line in weight]) + bias for v in vectors_of(output, "hidden_states")]
        mapped.append([vector / norm(vector) for vector in x])
    ours, theirs = mapped
    return mean(
        [-torch.log(softmax(torch.stack([dot(ours[i], other) / 0.1 for other in theirs]))[i]) for i in range(ROWS)]
    )


def naive_adversarial(objective, student, teacher):
    judge = copy.deepcopy(objective.discriminator).double()
    values = []
    for s, t in zip(vectors_of(student, "hidden_states"), vectors_of(teacher, "hidden_states"), strict=True):
        ours, theirs = (1 / (1 + torch.exp(-judge(vector))) for vector in (s, t))
        values.append(-torch.log(theirs) - torch.log(1 - ours))
    return mean(values).squeeze()


LAST, UNIFORM = [(3, 3)], [(1, 1), (2, 2), (3, 3)]
KINDS = ("queries", "keys", "values")

REFERENCES = {
    o.CrossEntropyLoss: [
        (lambda **w: o.CrossEntropyLoss(**w), naive_cross_entropy),
        (lambda **w: o.CrossEntropyLoss(class_weights=[1, 2, 5], label_smoothing=0.1, **w), naive_weighted_smoothed),
    ],
    o.TeacherLabelLoss: [
        (lambda **w: o.TeacherLabelLoss(**w), naive_teacher_label(0.0)),
        (lambda **w: o.TeacherLabelLoss(threshold=0.6, **w), naive_teacher_label(0.6)),
    ],
    o.ForwardKLLoss: [
        (lambda **w: o.ForwardKLLoss(temperature=2.0, **w), soft(2.0, lambda s, t, row: kl(t, s))),
        (lambda **w: o.ForwardKLLoss(temperature=0.5, **w), soft(0.5, lambda s, t, row: kl(t, s))),
        (lambda **w: o.ForwardKLLoss(standardize=True, **w), naive_standardized),
        (lambda **w: o.ForwardKLLoss(teacher_errors="skip", **w), naive_errors("skip")),
        (lambda **w: o.ForwardKLLoss(teacher_errors="shift", **w), naive_errors("shift")),
        (lambda **w: o.ForwardKLLoss(confidence_weighting=True, **w), naive_errors("keep", confidence=True)),
        (lambda **w: o.ForwardKLLoss(o.FocalTemperature(), **w), naive_focal),
    ],
    o.ReverseKLLoss: [(lambda **w: o.ReverseKLLoss(3.0, **w), soft(3.0, lambda s, t, row: kl(s, t)))],
    o.JSDLoss: [
        (lambda **w: o.JSDLoss(**w), soft(2.0, naive_jsd(0.5))),
        (lambda **w: o.JSDLoss(beta=0.1, **w), soft(2.0, naive_jsd(0.1))),
    ],
    o.DecoupledKDLoss: [(lambda **w: o.DecoupledKDLoss(alpha=1.0, beta=2.0, **w), soft(2.0, naive_dkd(1.0, 2.0)))],
    o.LogitMSELoss: [(lambda **w: o.LogitMSELoss(**w), naive_logit_mse)],
    o.DISTLoss: [(lambda **w: o.DISTLoss(2.0, beta=1.0, gamma=3.0, **w), naive_dist(2.0, 1.0, 3.0))],
    o.HiddenStateMSELoss: [
        (lambda **w: o.HiddenStateMSELoss([(0, 0), (1, 2), (3, 3)], **w),
         per_token([(0, 0), (1, 2), (3, 3)], squared)),
        (lambda **w: o.HiddenStateMSELoss("learned", **w), naive_learned),
    ],
    o.HiddenStateCosineLoss: [
        (lambda **w: o.HiddenStateCosineLoss(**w), per_token(LAST, cosine)),
        (lambda **w: o.HiddenStateCosineLoss("uniform", **w), per_token(UNIFORM, cosine)),
    ],
    o.EmbeddingMSELoss: [(lambda **w: o.EmbeddingMSELoss(**w), per_token([(0, 0)], squared))],
    o.PatientLoss: [
        (lambda **w: o.PatientLoss("1:1,3:3", **w), naive_patient([(1, 1), (3, 3)])),
        (lambda **w: o.PatientLoss(**w), naive_patient([(1, 1), (2, 2)])),
    ],
    o.FeatureDistributionLoss: [
        (lambda **w: o.FeatureDistributionLoss(**w), naive_discrepancy(UNIFORM, lambda x: x**2)),
        (lambda **w: o.FeatureDistributionLoss(kernel="linear", **w), naive_discrepancy(UNIFORM, lambda x: x)),
    ],
    o.GramLoss: [(lambda **w: o.GramLoss("0:0,1:2,3:3", **w), naive_gram([(0, 0), (1, 2), (3, 3)]))],
    o.AttentionMSELoss: [
        (lambda **w: o.AttentionMSELoss(**w), naive_attention_mse(UNIFORM)),
        (lambda **w: o.AttentionMSELoss(on="scores", **w), naive_attention_mse(UNIFORM, scores=True)),
    ],
    o.AttentionKLLoss: [(lambda **w: o.AttentionKLLoss(**w), naive_attention_kl(UNIFORM))],
    o.SelfAttentionRelationLoss: [
        (lambda **w: o.SelfAttentionRelationLoss(**w), naive_relation(LAST, KINDS, 4)),
        (lambda **w: o.SelfAttentionRelationLoss("1:2,3:3", relation_heads=2, **w),
         naive_relation([(1, 2), (3, 3)], KINDS, 2)),
    ],
    o.ValueRelationLoss: [(lambda **w: o.ValueRelationLoss("last", **w), naive_relation(LAST, ("values",), HEADS))],
    o.RelationalDistanceLoss: [
        (lambda **w: o.RelationalDistanceLoss(**w), naive_distance("hidden_states")),
        (lambda **w: o.RelationalDistanceLoss(on="logits", **w), naive_distance("logits")),
    ],
    o.RelationalAngleLoss: [(lambda **w: o.RelationalAngleLoss(**w), naive_angle)],
    o.ContrastiveLoss: [(lambda **w: o.ContrastiveLoss(width=3, **w), naive_contrastive)],
    o.AdversarialLoss: [(lambda **w: o.AdversarialLoss(width=3, **w), naive_adversarial)],
}  # fmt: skip
"""Every objective: how it is made (`weight` may be given), and its naive loop `(objective, student, teacher)`."""
