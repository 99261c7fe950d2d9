"""The exercises on what is larger than one network, and on networks of one's own."""

import math

from .exercise import Exercise

FOLDGPT = (
    Exercise(
        question="LLaMA-2-7B has 6,738,415,616 parameters, 202,383,360 of them in each block, of which 8,192 are "
        "norms. Four blocks are removed and four pairs share. How many parameters are left?",
        correct=6_738_415_616 - 4 * 202_383_360 - 4 * (202_383_360 - 8_192),
        slips={
            6_738_415_616 - 8 * 202_383_360: "each block of a pair keeps norms of its own",
            6_738_415_616 - 4 * 202_383_360: "those are the removed blocks alone: pairs that share save something, too",
            6_738_415_616 - 4 * (202_383_360 - 8_192): "those are the pairs alone: removed blocks save something, too",
            6_738_415_616 - 4 * 202_383_360 - 8 * (202_383_360 - 8_192): "a pair saves one block's weights, not both",
            6_738_415_616 - 8 * (202_383_360 - 8_192): "a removed block takes its norms with it",
            4 * 202_383_360 + 4 * (202_383_360 - 8_192): "that is what is saved: what is left?",
        },
        start="a removed block saves all of its parameters, a pair saves one block's without the norms",
        unit="parameters",
    ),
    Exercise(
        question="What is the gate g of a = 0.3 at epsilon = 0.1?",
        correct=0.3**2 / (0.3**2 + 0.1),
        slips={
            0.3 / (0.3 + 0.1): "a is squared, above and below the line",
            0.3**2 / (0.3**2 + 0.1**2): "epsilon is not squared",
            0.3 / (0.3**2 + 0.1): "a is squared above the line, too",
        },
        start="square a, and divide by that square plus epsilon",
        unit="a gate from 0 to 1",
    ),
)

HYBRIDSD = (
    Exercise(
        question="Without the prompt a U-Net predicts 1, with it 3. What does guidance with s = 4 make of the two?",
        correct=1.0 + 4.0 * (3.0 - 1.0),
        slips={
            3.0 + 4.0 * (3.0 - 1.0): "the way begins at the prediction without the prompt",
            4.0 * (3.0 - 1.0): "that is the way alone: where does it begin?",
            4.0 * 3.0: "what is scaled is the difference of the two predictions",
            1.0 + 4.0 * 3.0: "what is scaled is the difference of the two predictions",
            1.0 + 3.0 * (3.0 - 1.0): "w = s - 1 is what a consistency model is told; here s itself counts",
            3.0 - 4.0 * (3.0 - 1.0): "the way leads from the prediction without the prompt to the one with it",
        },
        start="begin without the prompt, and go s times the way to the prediction with it",
    ),
    Exercise(
        question="The latent of a picture of 512 x 512 has four channels and an eighth of each side. How many bytes "
        "does it take in half precision?",
        correct=4 * 64 * 64 * 2,
        slips={
            4 * 64 * 64 * 4: "half precision takes two bytes a value, not four",
            4 * 64 * 64: "that is the number of values: each takes two bytes",
            64 * 64 * 2: "that is one channel: there are four",
            4 * 512 * 512 // 8 * 2: "each side is an eighth, so the area is a 64th",
            512 * 512 * 3: "that is the raw picture",
            3 * 64 * 64 * 2: "a latent has four channels; three are those of a picture",
        },
        start="channels times height times width times bytes of a value",
        unit="bytes",
    ),
)

ACENAS = (
    Exercise(
        question="Five architectures stand in the true order 1, 2, 3, 4, 5; a guess puts them in the order 3, 1, 2, 4, "
        "5. What is Kendall's tau?",
        correct=(8 - 2) / 10,
        slips={
            8 / 10: "that is the share of pairs in the right order: take the share in the wrong order off",
            2 / 10: "that is the share of pairs in the wrong order",
            1 - 6 * 6 / (5 * 24): "that is Spearman's rho, which counts distances of ranks: tau counts pairs",
            2 / 5: "three are out of place, but tau counts pairs: there are ten",
            6.0: "divide by the number of pairs",
        },
        start="count the pairs in the right order and those in the wrong one, of ten pairs in all",
        unit="a number from -1 to 1",
    ),
    Exercise(
        question="Two architectures have the relevances 2 and 0 and equal scores, and the better one stands second. "
        "What is lambda of the better one, with sigma = 1?",
        correct=-0.5 * 3 * (1 - 1 / math.log2(3)) / 3,
        slips={
            0.5 * (1 - 1 / math.log2(3)): "the better one is lifted: its lambda is negative, as in the notebook",
            -(1 - 1 / math.log2(3)): "that is the change of NDCG: the sigmoid of equal scores is one half",
            1 - 1 / math.log2(3): "that is the change of NDCG: the factor before it is -1/2 for equal scores",
            -0.5 * 3 * (1 - 1 / math.log2(3)): "divide by Z, the ideal DCG: it is 3 here",
            -0.5 * 2 * (1 - 1 / math.log2(3)) / 3: "gains are 2^r - 1: 3 and 0, not 2 and 0",
            -0.5 * (1 - 1 / 2): "the discount at rank 2 is 1 / log2(3), not 1 / 2",
            -0.5: "that is the factor of the pair: weigh it by the change of NDCG",
        },
        start="gains 3 and 0, discounts 1 and 0.631, Z = 3: how much does the swap change NDCG? Halve that",
        unit="a number",
    ),
)

HYPERFD = (
    Exercise(
        question="The best of all 216 detectors reaches 95.4 on a data set; the five recommended reach 88.0, 91.6, "
        "90.2, 85.1 and 91.0. What is the regret?",
        correct=95.4 - 91.6,
        slips={
            95.4 - (88.0 + 91.6 + 90.2 + 85.1 + 91.0) / 5: "that is the mean's: the best of the five counts",
            95.4 - 88.0: "that is the first one's: the best of the five counts",
            95.4 - 85.1: "that is the worst one's: the best of the five counts",
            95.4 - 90.2: "that is the median's: the best of the five counts",
            91.6: "that is the best of the five: how far is it below the best of all?",
            100 - 91.6: "regret is counted from the best that the table holds, not from 100",
            100 * (95.4 - 91.6) / 95.4: "regret is a difference in points, not a share of the best",
        },
        start="how far is the best of the five below the best of all?",
        unit="points",
    ),
    Exercise(
        question="An owner sends R = 8 meta-vectors of 140 numbers, a transformation of 140 x 140, a row and a result "
        "for each of 20 trials, and 4 counts. How many numbers is that?",
        correct=8 * 140 + 140**2 + 2 * 20 + 4,
        slips={
            8 * 140 + 2 * 20 + 4: "the transformation is missing",
            140**2 + 2 * 20 + 4: "the meta-vectors are missing",
            8 * 140 + 140**2 + 20 + 4: "each trial sends two numbers: which one it was, and its result",
            8 * 140 + 140**2 + 2 * 20: "the four counts are missing",
            8 * 70 + 70**2 + 2 * 20 + 4: "a meta-vector holds means and spreads: 140 numbers, not 70",
            8 * 140 + 140 + 2 * 20 + 4: "the transformation is a square matrix",
        },
        start="add the vectors, the square matrix, two numbers for each trial, and the counts",
        unit="numbers",
    ),
)

CHAINS = (
    Exercise(
        question="In which order can DQSS, GAL and SparseByteNN follow one another?",
        correct=("gal", "sparsebytenn", "dqss"),
        slips={
            ("dqss", "gal", "sparsebytenn"): "what trains after DQSS leaves its integers behind: DQSS comes last",
            ("dqss", "sparsebytenn", "gal"): "what trains after DQSS leaves its integers behind: DQSS comes last",
            ("gal", "dqss", "sparsebytenn"): "what trains after DQSS leaves its integers behind: DQSS comes last",
            ("sparsebytenn", "dqss", "gal"): "what trains after DQSS leaves its integers behind: DQSS comes last",
            (
                "sparsebytenn",
                "gal",
                "dqss",
            ): "cutting channels takes blocks of rows apart: GAL comes first",
        },
        start="give the three names in order, such as 'A, B, C'; lab.chains() says what may follow what",
        unit="three names in order",
    ),
    Exercise(
        question="GAL leaves three quarters of the parameters, SparseByteNN half of those, and DQSS 8 of 32 bits. How "
        "many times smaller can the file become at most?",
        correct=1 / (0.75 * 0.5 * 0.25),
        slips={
            4 / 3 + 2 + 4: "savings of stages multiply, they do not add",
            8.0: "GAL's quarter is missing",
            4 / 3 * 4: "SparseByteNN's half is missing",
            4 / 3 * 2: "DQSS's bits are missing",
            4.0 * 2 * 4: "GAL leaves three quarters; it does not take them",
            2 * 4 * 3 / 4: "what GAL saves goes the other way: three quarters are left",
        },
        start="multiply the shares that the stages leave, and turn the product over",
        unit="a ratio",
    ),
)

YOUR_NETWORK = (
    Exercise(
        question="A vision transformer has three blocks of width 48, with six heads and a hidden layer four times as "
        "wide. How many entries do GAL's channel masks have?",
        correct=3 * (6 + 4 * 48),
        slips={
            6 + 4 * 48: "that is one block: there are three",
            3 * 6: "those are the heads: hidden units are masked, too",
            3 * 4 * 48: "those are the hidden units: heads are masked, too",
            3 * (6 + 48): "the hidden layer is four times as wide as the embedding",
            3 * (6 + 2 * 48): "here the hidden layer is four times as wide; twice was the notebook's",
            3 * (6 + 4 * 48) + 48: "LayerNorm normalises over the embedding's channels: they are not masked",
            3 * (3 * 6 + 4 * 48): "a head loses its rows of q, k and v together: one entry a head",
            3 * (48 + 4 * 48): "attention loses whole heads, not single channels",
        },
        start="a block has one entry for each head and one for each hidden unit",
        unit="entries",
    ),
    Exercise(
        question="89 % of the pixels are ground, 5 % things in four colours, and 6 % rims that count nowhere. A "
        "network answers 'ground' everywhere. What is its mean IoU over the five classes, in percent?",
        correct=100 * 0.89 / 0.94 / 5,
        slips={
            100 * 0.89 / 0.94: "that is the IoU of the ground: the mean is over five classes",
            89.0: "that is the share of ground: four more classes get nothing, and rims do not count",
            89 / 5: "rims count nowhere: the union of the ground is 89 + 5 % of the pixels",
            100 / 5: "the ground's IoU is below 1, since things are answered 'ground', too",
            100 * 0.89 / 0.94 / 4: "the ground is a class, too: five in all",
            100 * 0.89 / 0.94 / 2: "each colour is a class of its own: five in all",
        },
        start="the ground's intersection over its union, the other classes' zeros, and the mean of the five",
        unit="percent",
    ),
)
