"""``python -m nnunet_kd.workflows.demo.stock_teacher``: stock nnU-Net with a short schedule.

Its command line does not offer one.
"""

from __future__ import annotations

import argparse

import torch

from nnunet_kd.nnunet.environment import STOCK_TRAINER
from nnunet_kd.nnunet.training import trainer_of_dataset
from nnunet_kd.system.cores import computing_threads


def main() -> None:
    """Train and validate ``nnUNetTrainer`` for a given number of epochs and iterations."""
    parser = argparse.ArgumentParser()
    parser.add_argument("dataset")
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--iterations", type=int, required=True)
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument("--device", required=True)
    arguments = parser.parse_args()
    if arguments.device == "cpu":
        torch.set_num_threads(computing_threads())
    torch.manual_seed(0)
    trainer = trainer_of_dataset(
        arguments.dataset, "3d_fullres", 0, STOCK_TRAINER, "nnUNetPlans", torch.device(arguments.device)
    )
    trainer.num_epochs = arguments.epochs
    trainer.num_iterations_per_epoch = arguments.iterations
    trainer.num_val_iterations_per_epoch = 2
    trainer.initial_lr = arguments.learning_rate
    trainer.run_training()
    trainer.perform_actual_validation()


if __name__ == "__main__":
    main()
