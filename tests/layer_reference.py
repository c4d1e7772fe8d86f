"""Layers in NumPy float64, written from their definitions and not from the library."""

import numpy as np


def convolution(x, weight, bias=None, stride=1, padding=1):
    """Sum over the kernel's places, output pixel by output pixel."""
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    height, width, _, outputs = weight.shape
    rows, columns = (x.shape[1] - height) // stride + 1, (x.shape[2] - width) // stride + 1
    y = np.zeros((x.shape[0], rows, columns, outputs))
    for i in range(rows):
        for j in range(columns):
            window = x[:, i * stride : i * stride + height, j * stride : j * stride + width]
            y[:, i, j] = np.tensordot(window, weight, 3)
    return y if bias is None else y + bias


def max_pool(x):
    """2 x 2 windows; an odd last row or column is left out."""
    height, width = x.shape[1] // 2, x.shape[2] // 2
    return x[:, : 2 * height, : 2 * width].reshape(-1, height, 2, width, 2, x.shape[-1]).max((2, 4))


def relu(x):
    return np.where(x > 0, x, 0.0)


def batch_norm(x, norm, train):
    """Biased variance of the batch to train, running moments to evaluate."""
    axes = tuple(range(x.ndim - 1))
    mean, variance = (x.mean(axes), x.var(axes)) if train else (norm.mean.value, norm.variance.value)
    return (x - mean) / np.sqrt(variance + norm.epsilon) * norm.scale + norm.bias


def group_norm(x, norm):
    grouped = x.reshape(x.shape[0], -1, norm.groups, x.shape[-1] // norm.groups)
    mean, variance = grouped.mean((1, 3), keepdims=True), grouped.var((1, 3), keepdims=True)
    return ((grouped - mean) / np.sqrt(variance + norm.epsilon)).reshape(x.shape) * norm.scale + norm.bias
