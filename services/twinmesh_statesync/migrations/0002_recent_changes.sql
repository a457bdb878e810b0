-- The newest changes travel with a checkpoint: a watcher that was a moment behind it can still resume.
ALTER TABLE checkpoint_record DROP CONSTRAINT checkpoint_record_kind_check;
ALTER TABLE checkpoint_record ADD CONSTRAINT checkpoint_record_kind_check
    CHECK (kind IN ('twin_type', 'twin', 'event', 'verdict', 'changes'));
