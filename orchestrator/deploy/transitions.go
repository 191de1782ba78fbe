package deploy

// Transition is one arrow of the machine: in step From, the named input may lead to step To.
type Transition struct {
	From, To StepName
	Input    string
}

// Transitions is the whole state diagram, for the documentation. A test compares it with what the machine does. Inputs
// that leave a step as it is are not arrows.
func Transitions() []Transition {
	return []Transition{
		{StepPending, StepWaiting, "Start"},
		{StepPending, StepLaunching, "Start"},
		{StepPending, StepPreparing, "Start"},
		{StepPending, StepDone, "AbortAsked"},

		{StepWaiting, StepLaunching, "Cleared"},
		{StepWaiting, StepPreparing, "Cleared"},
		{StepWaiting, StepWaitStuck, "Tick"},
		{StepWaiting, StepDone, "AbortAsked"},
		{StepWaitStuck, StepLaunching, "Cleared"},
		{StepWaitStuck, StepPreparing, "Cleared"},
		{StepWaitStuck, StepDone, "AbortAsked"},

		{StepLaunching, StepChecking, "TaskRunning"},
		{StepLaunching, StepChecking, "TaskHealthy"},
		{StepLaunching, StepPreparing, "TaskHealthy"},
		{StepLaunching, StepExplaining, "TaskEnded"},
		{StepLaunching, StepExplaining, "TaskLost"},
		{StepLaunching, StepExplaining, "TaskOverdue"},
		{StepLaunching, StepExplaining, "Tick"},
		{StepLaunching, StepDone, "Tick"},
		{StepLaunching, StepDone, "AbortAsked"},

		{StepChecking, StepPreparing, "TaskHealthy"},
		{StepChecking, StepLaunching, "TaskEnded"},
		{StepChecking, StepLaunching, "TaskLost"},
		{StepChecking, StepExplaining, "TaskEnded"},
		{StepChecking, StepExplaining, "TaskLost"},
		{StepChecking, StepExplaining, "TaskOverdue"},
		{StepChecking, StepExplaining, "Tick"},
		{StepChecking, StepDone, "AbortAsked"},

		{StepPreparing, StepActivating, "TxnChanged"},
		{StepPreparing, StepCommitting, "TxnChanged"},
		{StepPreparing, StepDraining, "TxnChanged"},
		{StepPreparing, StepKilling, "TxnChanged"},
		{StepPreparing, StepDone, "TxnChanged"},
		{StepPreparing, StepRestoring, "TxnChanged"},
		{StepPreparing, StepRestoreStuck, "TxnChanged"},
		{StepPreparing, StepRetrying, "TxnChanged"},
		{StepPreparing, StepRetrying, "TxnUnknown"},
		{StepPreparing, StepDone, "TxnUnknown"},
		{StepPreparing, StepRestoring, "TaskEnded"},
		{StepPreparing, StepRestoring, "AbortAsked"},
		{StepPreparing, StepRestoring, "Tick"},

		{StepActivating, StepCommitting, "TxnChanged"},
		{StepActivating, StepDraining, "TxnChanged"},
		{StepActivating, StepKilling, "TxnChanged"},
		{StepActivating, StepDone, "TxnChanged"},
		{StepActivating, StepRestoring, "TxnChanged"},
		{StepActivating, StepRestoreStuck, "TxnChanged"},
		{StepActivating, StepRetrying, "TxnChanged"},
		{StepActivating, StepRetrying, "TxnUnknown"},
		{StepActivating, StepDone, "TxnUnknown"},
		{StepActivating, StepRestoring, "TaskEnded"},
		{StepActivating, StepRestoring, "AbortAsked"},
		{StepActivating, StepRestoring, "Tick"},

		{StepCommitting, StepDraining, "TxnChanged"},
		{StepCommitting, StepKilling, "TxnChanged"},
		{StepCommitting, StepDone, "TxnChanged"},
		{StepCommitting, StepActivating, "TxnChanged"},
		{StepCommitting, StepRestoring, "TxnChanged"},
		{StepCommitting, StepRestoreStuck, "TxnChanged"},
		{StepCommitting, StepRetrying, "TxnChanged"},
		{StepCommitting, StepRetrying, "TxnUnknown"},
		{StepCommitting, StepDone, "TxnUnknown"},
		{StepCommitting, StepRestoring, "TaskEnded"},
		{StepCommitting, StepRestoring, "AbortAsked"},
		{StepCommitting, StepRestoreStuck, "Tick"},

		{StepRetrying, StepLaunching, "Tick"},
		{StepRetrying, StepChecking, "Tick"},
		{StepRetrying, StepPreparing, "Tick"},
		{StepRetrying, StepExplaining, "TaskEnded"},
		{StepRetrying, StepExplaining, "TaskLost"},
		{StepRetrying, StepExplaining, "TaskOverdue"},
		{StepRetrying, StepDone, "AbortAsked"},

		{StepRestoring, StepDraining, "TxnChanged"},
		{StepRestoring, StepKilling, "TxnChanged"},
		{StepRestoring, StepDone, "TxnChanged"},
		{StepRestoring, StepRestoreStuck, "TxnChanged"},
		{StepRestoring, StepRestoreStuck, "Tick"},
		{StepRestoring, StepRetrying, "TxnChanged"},
		{StepRestoring, StepRetrying, "TxnUnknown"},
		{StepRestoring, StepExplaining, "TxnChanged"},
		{StepRestoring, StepExplaining, "TxnUnknown"},
		{StepRestoring, StepDone, "TxnUnknown"},
		{StepRestoreStuck, StepDraining, "TxnChanged"},
		{StepRestoreStuck, StepKilling, "TxnChanged"},
		{StepRestoreStuck, StepDone, "TxnChanged"},
		{StepRestoreStuck, StepDone, "TxnUnknown"},
		{StepRestoreStuck, StepExplaining, "TxnChanged"},
		{StepRestoreStuck, StepExplaining, "TxnUnknown"},

		{StepExplaining, StepDone, "OutputRead"},
		{StepExplaining, StepDone, "Tick"},
		{StepExplaining, StepDone, "AbortAsked"},

		{StepDraining, StepDrainStuck, "Tick"},
		{StepDraining, StepKilling, "TxnDrained"},
		{StepDraining, StepDone, "TxnDrained"},
		{StepDrainStuck, StepKilling, "TxnDrained"},
		{StepDrainStuck, StepDone, "TxnDrained"},
		{StepKilling, StepDone, "OldTasksGone"},
		{StepKilling, StepDone, "Tick"},
	}
}
