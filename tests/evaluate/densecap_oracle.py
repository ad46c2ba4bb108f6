"""DenseCap's metric once more, slow and word for word from the protocol's text, to test the port against.

It shares nothing with the port: plain Python numbers, boxes as centre and size as DenseCap holds them, tables with
Lua's index from 1 and -1 for "none", every threshold walked by loops.
"""


def corners(box, scale):
    """x1, y1, x2, y2 edges in pixels -> centre and size at the long side of 720 -> first and last pixel."""
    width, height = (box[2] - box[0]) * scale, (box[3] - box[1]) * scale
    # Pixels count from 1: a box of width w whose first pixel is x has its centre at x + (w - 1) / 2.
    xc, yc = box[0] * scale + 1 + (width - 1) / 2, box[1] * scale + 1 + (height - 1) / 2
    return [xc - (width - 1) / 2, yc - (height - 1) / 2, xc + (width - 1) / 2, yc + (height - 1) / 2]


def overlap(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    if width <= 0 or height <= 0:
        return 0.0
    area_a = (a[2] - a[0] + 1) * (a[3] - a[1] + 1)
    area_b = (b[2] - b[0] + 1) * (b[3] - b[1] + 1)
    return round(width * height / (area_a + area_b - width * height), 9)  # 1/2 must reach 0.5


def merge(boxes):
    """Groups of places: the largest set of boxes that overlap one box by at least 0.7, taken away, and again."""
    left, groups = set(range(len(boxes))), []
    while left:
        best = []
        for i in sorted(left):
            near = [j for j in sorted(left) if i == j or overlap(boxes[i], boxes[j]) >= 0.7]
            if len(near) > len(best):
                best = near
        groups.append(best)
        left -= set(best)
    return groups


def evaluate(images, meteor):
    """The reference mAP of images as dicts: size, boxes, captions, scores, true_boxes, true_captions."""
    records, ground_truth = [], 0
    for image in images:
        scale = 720 / max(image["size"])
        boxes = [corners(box, scale) for box in image["boxes"]]
        true = [corners(box, scale) for box in image["true_boxes"]]
        groups = merge(true)
        merged = [[sum(true[i][k] for i in group) / len(group) for k in range(4)] for group in groups]
        references = [[image["true_captions"][i] for i in group] for group in groups]
        used = dict.fromkeys(range(1, len(merged) + 1), 0)
        for d in sorted(range(len(boxes)), key=lambda d: -image["scores"][d]):
            ovmax, jmax = 0.0, -1
            for j in range(1, len(merged) + 1):
                ov = overlap(boxes[d], merged[j - 1])
                if ov > ovmax:
                    ovmax, jmax = ov, j
            place = len(merged) if jmax == -1 else jmax  # a Torch7 tensor reads -1 as its last element
            ok = 0
            if merged and used[place] == 0:
                used[place], ok = 1, 1
            found = meteor(image["captions"][d], references[jmax - 1]) if jmax != -1 else 0.0
            records.append((image["scores"][d], ok, ovmax, found))
        ground_truth += len(merged)
    records.sort(key=lambda record: -record[0])
    total = 0.0
    for min_overlap in (0.3, 0.4, 0.5, 0.6, 0.7):
        for min_score in (0, 0.05, 0.1, 0.15, 0.2, 0.25):
            tp, curve = 0, []
            for n, (_, ok, ov, found) in enumerate(records, start=1):
                tp += ok == 1 and ov >= min_overlap and found > min_score
                curve.append((tp, tp / n))
            points = [max([p for tp, p in curve if 100 * tp >= t * ground_truth], default=0.0) for t in range(101)]
            total += sum(points) / 101
    return total / 30
