"""The transformers Trainer, over one process or several."""

from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, RandomSampler
from transformers import Trainer

from kdcache.encoder.load import WEIGHTS
from kdcache.encoder.mean_pooled import MeanPooledClassifier
from kdcache.errors import ParamsError
from kdcache.teacher.processes import num_processes
from kdcache.teacher.sharding import full_weights


class TeacherTrainer(Trainer):
    """Deals the batches of one process to several, and knows mean-pooled models.

    Checkpoints of a mean-pooled model hold the trained weights only, as those of an adapter do.
    """

    def create_accelerator_and_postprocess(self) -> None:
        if self.args.fsdp and (state := PartialState()).distributed_type == DistributedType.MULTI_CPU:
            state.distributed_type = DistributedType.MULTI_GPU  # accelerate shards nothing on a CPU, else
        super().create_accelerator_and_postprocess()
        if self.args.fsdp and not self.is_fsdp_enabled:
            raise ParamsError(
                "train_teacher.shard_weights: accelerate must be able to shard weights, got one that is not "
                f"on {self.args.device.type}. Set it to false."
            )

    def get_train_dataloader(self) -> DataLoader[int]:
        """Return whole batches in every process; the collator takes each one's share.

        Accelerate would repeat rows in the last batch of an epoch until all processes have as many.
        """
        if num_processes() == 1:
            return super().get_train_dataloader()
        batch_size = self.args.per_device_train_batch_size * num_processes()
        rows: Any = self.train_dataset
        whole = DataLoader(rows, batch_size, sampler=RandomSampler(rows), collate_fn=self.data_collator)
        return prepare_data_loader(
            whole, self.args.device, num_processes=1, process_index=0, put_on_device=True,
            use_seedable_sampler=True, data_seed=self.args.data_seed,
        )  # fmt: skip

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if isinstance(self.model, MeanPooledClassifier) and state_dict is None:
            state_dict = full_weights(self.model)
        super()._save(output_dir, state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if isinstance(self.model, MeanPooledClassifier) and not self.args.fsdp:
            self.model.load_state_dict(load_file(Path(resume_from_checkpoint, WEIGHTS)), strict=False)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
