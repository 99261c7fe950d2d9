"""The exercises on one network: what is cut, gated, quantised or made sparse, and what the lens shows."""

from .exercise import Exercise

TOUR = (
    Exercise(
        question="The first convolution of the digits' ResNet-20 reads one channel of 8 x 8 pixels and writes 16, with "
        "3 x 3 kernels and padding. How many multiply-adds does it cost?",
        correct=8 * 8 * 16 * 9,
        slips={
            16 * 9: "that is its number of weights: each of them is used once for every pixel",
            2 * 8 * 8 * 16 * 9: "a multiplication and its addition count as one multiply-add",
            8 * 8 * 9: "that is one of its filters: it has 16",
            8 * 8 * 16: "that is how many values it writes: each takes a whole kernel",
            3 * 8 * 8 * 16 * 9: "these pictures are grey: one channel comes in, not three",
            6 * 6 * 16 * 9: "with padding the output has as many pixels as the input",
        },
        start="count the weights that one output value needs, then the output values",
        unit="multiply-adds",
    ),
    Exercise(
        question="500 pictures are held out. By how many percentage points does the accuracy change with one of them?",
        correct=100 / 500,
        slips={
            100 / 1297: "1,297 is the number of pictures it learned from: accuracy is measured on those held out",
            100 / 1797: "1,797 is the whole set: accuracy is measured on the pictures held out",
            5.0: "that is 500 / 100: ask what share of 500 one picture is",
        },
        start="what share of the pictures held out is one of them?",
        unit="percentage points",
    ),
)

GAL = (
    Exercise(
        question="A mask stands at y = 0.020, the gradient of the smooth losses is 0.1, the step size 0.1 and lambda "
        "0.07. Where does one proximal step leave it?",
        correct=max(0.0, 0.020 - 0.1 * 0.1 - 0.1 * 0.07),
        slips={
            0.020 - 0.1 * 0.1: "that is the gradient step alone: now shrink by the threshold",
            0.020 - 0.1 * 0.07: "that is the shrinking alone: the gradient step comes first",
            0.020 + 0.1 * 0.1 - 0.1 * 0.07: "the step goes against the gradient",
            0.020 - 0.1 * 0.1 + 0.1 * 0.07: "shrinking pulls the mask towards zero, not away from it",
            0.0: "the threshold is the step size times lambda, not lambda alone",
        },
        start="first y minus the step size times the gradient, then take the step size times lambda off",
        unit="the mask's new value",
    ),
    Exercise(
        question="The paper's ResNet-56 (GAL-0.6) lost ten blocks: layer1.1 to layer1.6 and layer2.1 to layer2.4. How "
        "many multiply-adds are left?",
        correct=78_299_776,
        slips={
            125_485_696: "that is the whole ResNet-56: take the ten blocks out",
            125_485_696 - 78_299_776: "that is what the ten blocks cost: what is left without them?",
            78_299_776 + 16 * 9 * 16 * 32 * 32 * 2: "one block too few: layer1.1 to layer1.6 are six",
            125_485_696 - 6 * 2 * 16 * 9 * 16 * 32 * 32: "those are the first stage's six blocks: four more go",
            2 * 78_299_776: "a multiplication and its addition count as one multiply-add",
        },
        start="name the ten blocks in lab.surgery.Plan(blocks=...), remove them, and count with lab.cost.macs",
        unit="multiply-adds",
    ),
)

DECOUPLING = (
    Exercise(
        question="A layer of 64 to 128 channels with 3 x 3 kernels on 14 x 14 pixels: 32 of its inputs and 96 of its "
        "filters are on. How many multiply-adds does its path cost?",
        correct=14 * 14 * 32 * 96 * 9,
        slips={
            14 * 14 * 64 * 128 * 9: "that is the whole layer: only what is on is computed",
            14 * 14 * 64 * 96 * 9: "filters that are off were left out, but half of the inputs are off as well",
            14 * 14 * 32 * 128 * 9: "inputs that are off were left out, but a quarter of the filters is off as well",
            14 * 14 * 32 * 96: "each filter has 3 x 3 weights for each input",
            32 * 96 * 9: "that is the number of weights: each is used at every pixel",
            14 * 14 * 32 * 32 * 9: "96 filters are on; 32 is how many are off",
        },
        start="multiply pixels, inputs that are on, filters that are on, and the weights of one kernel",
        unit="multiply-adds",
    ),
    Exercise(
        question="At an on-rate of 0.6 in every layer, how many times fewer multiply-adds does a ResNet-18 at "
        "224 x 224 pixels need, if residual streams and the first layer count as always on?",
        correct=1.98358,
        slips={
            1 / 0.6: "behind a gated layer, inputs are off as well as filters",
            1 / 0.36: "inputs that come from a residual stream, and the first layer, are always on",
            0.6: "that is the on-rate: the cost falls with the share of inputs, too",
            0.36: "inputs that come from a residual stream are always on, and 'times fewer' is a number above 1",
        },
        start="insert the gates, give decoupled.macs a mask of 0.6 for each site, and divide decoupled.dense by it",
        unit="a ratio",
    ),
)

LENS = (
    Exercise(
        question="A unit's strongest pixels are a square of 4 x 4, a concept's mask is one of 6 x 6, and they share 8 "
        "pixels. What is their intersection over union?",
        correct=8 / (16 + 36 - 8),
        slips={
            8 / (16 + 36): "the shared pixels are counted twice in that union",
            8 / 16: "that is the share of the unit's pixels: divide by the union",
            8 / 36: "that is the share of the mask's pixels: divide by the union",
            8.0: "that is the intersection: divide by the union",
            44.0: "that is the union: divide the intersection by it",
        },
        start="divide the pixels that both have by those that either has",
        unit="a share",
    ),
    Exercise(
        question="A filter's mean output is 0.9 on one class, and 0.1, 0.2 and 0.3 on the others. What is its "
        "class-selectivity index?",
        correct=(0.9 - 0.2) / (0.9 + 0.2),
        slips={
            (0.9 - 0.3) / (0.9 + 0.3): "take the mean of the other classes, not the highest of them",
            (0.9 - 0.1) / (0.9 + 0.1): "take the mean of the other classes, not the lowest of them",
            (0.9 - 0.6) / (0.9 + 0.6): "take the mean of the other classes, not their sum",
            (0.9 - 0.375) / (0.9 + 0.375): "the mean is over the other classes, without the highest",
            0.9 - 0.2: "divide by the sum of the two",
        },
        start="(highest - mean of the others) / (highest + mean of the others)",
        unit="a number from 0 to 1",
    ),
)

PAMS = (
    Exercise(
        question="The signed grid of 4 bits with alpha = 1: to which value is 0.40 rounded?",
        correct=3 / 7,
        slips={
            6 / 15: "15 levels are those of the grid behind a ReLU: a signed one has 7 on each side",
            3 / 8: "8 levels would leave room for -8 only on one side: this grid is symmetric",
            2 / 7: "round to the nearest level, not down",
            3.0: "that is the code: multiply it by the step",
            2.8: "that is 0.40 in steps: round it, and multiply by the step",
            1 / 7: "that is the step: to which multiple of it is 0.40 nearest?",
        },
        start="the step is alpha / (2^(b-1) - 1): round 0.40 to its nearest multiple",
    ),
    Exercise(
        question="EDSR has 1,517,571 parameters, 1,181,696 of which are quantised to 4 bits. How many 32-bit "
        "parameters would take the same room?",
        correct=1_517_571 - 1_181_696 + 1_181_696 * 4 // 32,
        slips={
            1_181_696 * 4 // 32: "that is the quantised part: the rest stays in 32 bits and counts, too",
            1_517_571 * 4 / 32: "not all parameters are quantised: the others keep their 32 bits",
            1_517_571 - 1_181_696: "that is the part that stays in 32 bits: the quantised one still takes some room",
            1_517_571 - 1_181_696 + 1_181_696 // 4: "4 bits are an eighth of 32, not a quarter",
            1_517_571 - 1_181_696 * 4 // 32: "4 / 32 is what the quantised part still takes, not what it saves",
            1_517_571: "that is the network before it was quantised",
        },
        start="what stays in 32 bits counts in full, what is quantised counts by its bits",
        unit="parameters of 32 bits",
    ),
)

DQSS = (
    Exercise(
        question="32 layers, with five strategies for the weights and five for the activations of each. How many "
        "assignments are there?",
        correct=25.0**32,
        slips={
            44.734: "that is its power of ten: give the number itself, such as 1.2e34",
            5.0**32: "each layer chooses twice: once for its weights, once for its activations",
            10.0**32: "the two choices of a layer are made together: multiply them, do not add them",
            25.0 * 32: "layers choose independently: the numbers multiply over layers",
            32.0**25: "layers are the exponent: each of 32 has 25 possibilities",
            320.0: "layers choose independently: the numbers multiply over layers",
        },
        start="how many possibilities has one layer, and how do those of 32 layers combine?",
        unit="assignments",
    ),
    Exercise(
        question="At one value two strategies err by +0.3 and by -0.2. What is the squared error of their even "
        "mixture?",
        correct=((0.3 - 0.2) / 2) ** 2,
        slips={
            (0.3**2 + 0.2**2) / 2: "that is the mean of the squared errors: a mixture errs by the mean of the errors",
            (0.3 - 0.2) / 2: "that is the mixture's error: square it",
            0.2**2: "that is the better strategy alone: in a mixture errors of opposite sign cancel",
            0.1**2: "that is the square of the sum: an even mixture takes half of each",
            0.25**2: "the errors have opposite signs: they cancel",
        },
        start="the mixture's error is the mean of the two errors, signs included",
        unit="a squared error",
    ),
)

SPARSEBYTENN = (
    Exercise(
        question="70 % of a matrix's weights are zero at random. What share of its blocks of four rows is empty?",
        correct=0.7**4,
        slips={
            0.7: "that is the share of zeros: a block is empty only if all four of its weights are",
            0.3**4: "that is the share of blocks without any zero",
            1 - 0.7**4: "that is the share of blocks with something in them",
            0.7 / 4: "the four weights are independent: multiply, do not divide",
            0.7**2: "a block has four weights, not two",
            0.7**3: "a block has four weights, not three",
            0.7**16: "a block is four rows of one input: four weights, not sixteen",
        },
        start="how likely is it that four weights are zero at once?",
        unit="a share",
    ),
    Exercise(
        question="MobileNet-v1 costs 568,740,352 multiply-adds, 539,492,352 of them in pointwise layers. How many "
        "times as fast can it become at most if half of the pointwise ones take no time?",
        correct=568_740_352 / (568_740_352 - 0.5 * 539_492_352),
        slips={
            2.0: "only the pointwise layers are halved: the others still take their time",
            568_740_352 / 539_492_352: "that is as if all but the pointwise layers were gone",
            568_740_352 / (568_740_352 - 539_492_352): "that is as if all of the pointwise layers were gone: half stay",
            1.397765: "that is the bound at 30 %: here half are gone",
            539_492_352 / 568_740_352: "that is the share of the pointwise layers: what is left if half of it goes?",
        },
        start="divide what it costs by what is left: everything but half of the pointwise multiply-adds",
        unit="a ratio",
    ),
)
